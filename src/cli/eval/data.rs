//! Reading data files line by line, with errors that name file, line and where the data are published.

use super::super::report::Failure;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Where a kind of data is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    Sts,
    Senteval,
    Beir,
}

impl Published {
    fn places(self) -> &'static str {
        match self {
            Self::Sts => {
                "published: STS12 to STS16 and the STS benchmark at https://ixa2.si.ehu.eus/stswiki, SICK at \
                 https://zenodo.org/records/2787612, STS-B of GLUE at https://gluebenchmark.com/tasks; \
                 https://github.com/facebookresearch/SentEval (data/downstream) has a script that gets most"
            }
            Self::Senteval => {
                "published: https://github.com/facebookresearch/SentEval (data/downstream) has a script that \
                 gets MR, CR, SUBJ, MPQA, SST-2, TREC and MRPC"
            }
            Self::Beir => "published: https://github.com/beir-cellar/beir lists the sets in this layout",
        }
    }

    /// An error about the data as a whole.
    pub(crate) fn missing(self, what: impl Display) -> Failure {
        Failure::Error(format!("{what}\n{}", self.places()))
    }
}

/// One file's text, in lines.
#[derive(Debug)]
pub(crate) struct TextFile {
    pub(crate) path: PathBuf,
    text: String,
    published: Published,
}

impl TextFile {
    /// # Errors
    /// A file that is not there or not UTF-8, by line.
    pub(crate) fn read(path: &Path, published: Published) -> Result<Self, Failure> {
        let bytes = Self::bytes(path, published)?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
            published.missing(format!("{}:{line}: not UTF-8", path.display()))
        })?;
        Ok(Self { path: path.into(), text, published })
    }

    /// As [`read`](Self::read), of a file that is as old as Latin-1: where it is not UTF-8, it is that.
    pub(crate) fn read_latin1(path: &Path, published: Published) -> Result<Self, Failure> {
        let text = String::from_utf8(Self::bytes(path, published)?)
            .unwrap_or_else(|e| e.as_bytes().iter().copied().map(char::from).collect());
        Ok(Self { path: path.into(), text, published })
    }

    fn bytes(path: &Path, published: Published) -> Result<Vec<u8>, Failure> {
        std::fs::read(path).map_err(|e| published.missing(format!("{}: {e}", path.display())))
    }

    /// Lines without their ends, numbered from 1. An empty last line is none.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    pub(crate) fn line_count(&self) -> usize {
        self.text.lines().count()
    }

    /// An error in a line.
    pub(crate) fn error(&self, line: usize, what: impl Display) -> Failure {
        self.published.missing(format!("{}:{line}: {what}", self.path.display()))
    }

    /// A file that has nothing to offer.
    pub(crate) fn empty(&self, what: &str) -> Failure {
        self.published.missing(format!("{}: no {what} in it", self.path.display()))
    }
}

/// The files of a folder by name, sorted; folders are entered down to `depth` levels below.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn files_below(dir: &Path, depth: usize, published: Published) -> Result<Vec<PathBuf>, Failure> {
    let fail = |e: std::io::Error| published.missing(format!("{}: {e}", dir.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.is_dir() {
            if depth > 0 {
                found.extend(files_below(&path, depth - 1, published)?);
            }
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A path's last part.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
