//! SentEval's data as SentEval lays them out, and as plain tab-separated files.

use super::super::super::report::Failure;
use super::super::data::{Published, TextFile, file_name};
use std::path::{Path, PathBuf};

/// A set: labels as class numbers, and sentences.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    /// Two sentences to a label.
    pub(crate) pairs: bool,
    /// Sorted.
    pub(crate) classes: Vec<String>,
    /// All; or train and test; or train, dev and test.
    pub(crate) parts: Vec<Part>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) labels: Vec<u32>,
    /// One for each label, or two.
    pub(crate) sentences: Vec<String>,
}

impl Part {
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.sentences.iter().map(String::as_str).collect()
    }
}

/// How a set is published.
struct Layout {
    name: &'static str,
    pairs: bool,
    /// Tab-separated files `label, sentence[, sentence]` in `<name>/`, one for each part.
    tsv: &'static [&'static str],
    /// SentEval's folder and its files for each part.
    folder: &'static str,
    published: Form,
}

/// SentEval's forms.
enum Form {
    /// A file for each class, a sentence a line; the first is class 1.
    Classes([&'static str; 2]),
    /// `sentence TAB label`
    Sst([&'static str; 3]),
    /// `LABEL:detail sentence`
    Trec([&'static str; 2]),
    /// A header; `label, id, id, sentence, sentence`
    Mrpc([&'static str; 2]),
}

const LAYOUTS: [Layout; 7] = [
    Layout {
        name: "mr",
        pairs: false,
        tsv: &["all"],
        folder: "MR",
        published: Form::Classes(["rt-polarity.pos", "rt-polarity.neg"]),
    },
    Layout {
        name: "cr",
        pairs: false,
        tsv: &["all"],
        folder: "CR",
        published: Form::Classes(["custrev.pos", "custrev.neg"]),
    },
    Layout {
        name: "subj",
        pairs: false,
        tsv: &["all"],
        folder: "SUBJ",
        published: Form::Classes(["subj.subjective", "subj.objective"]),
    },
    Layout {
        name: "mpqa",
        pairs: false,
        tsv: &["all"],
        folder: "MPQA",
        published: Form::Classes(["mpqa.pos", "mpqa.neg"]),
    },
    Layout {
        name: "sst2",
        pairs: false,
        tsv: &["train", "dev", "test"],
        folder: "SST/binary",
        published: Form::Sst(["sentiment-train", "sentiment-dev", "sentiment-test"]),
    },
    Layout {
        name: "trec",
        pairs: false,
        tsv: &["train", "test"],
        folder: "TREC",
        published: Form::Trec(["train_5500.label", "TREC_10.label"]),
    },
    Layout {
        name: "mrpc",
        pairs: true,
        tsv: &["train", "test"],
        folder: "MRPC",
        published: Form::Mrpc(["msr_paraphrase_train.txt", "msr_paraphrase_test.txt"]),
    },
];

/// The sets that were asked for, or all there are, in the order of the literature.
///
/// # Errors
/// A malformed line; a set that was asked for and is nowhere.
pub(crate) fn load(places: &[PathBuf], names: &[String]) -> Result<Vec<Set>, Failure> {
    let names: Vec<String> = names.iter().map(|n| n.to_lowercase()).collect();
    if let Some(name) = names.iter().find(|n| !LAYOUTS.iter().any(|l| l.name == **n)) {
        let known: Vec<_> = LAYOUTS.iter().map(|l| l.name).collect();
        return Err(Failure::Error(format!("no set '{name}': one of {}", known.join(", "))));
    }
    let mut sets = Vec::new();
    for layout in LAYOUTS.iter().filter(|l| names.is_empty() || names.iter().any(|n| n == l.name)) {
        let found = places.iter().find_map(|place| layout.find(place));
        match found {
            Some(files) => sets.push(layout.read(&files)?),
            None if names.is_empty() => {}
            None => {
                let (name, folder) = (layout.name, layout.folder);
                return Err(missing(places, &format!("no set '{name}' ({name}/*.tsv or {folder}/)")));
            }
        }
    }
    if sets.is_empty() { Err(missing(places, "no set of SentEval in it")) } else { Ok(sets) }
}

fn missing(places: &[PathBuf], what: &str) -> Failure {
    let places: Vec<_> = places.iter().map(|p| p.display().to_string()).collect();
    Published::Senteval.missing(format!("{}: {what}", places.join(", ")))
}

/// Where a set was found.
enum Files {
    Tsv(PathBuf),
    Published(PathBuf),
}

impl Layout {
    fn find(&self, place: &Path) -> Option<Files> {
        let named_itself = file_name(place).eq_ignore_ascii_case(self.name);
        let tsv = [place.join(self.name), place.into()];
        // the folder itself only if that is its name: others have a train.tsv, too
        let tsv = &tsv[..if named_itself { 2 } else { 1 }];
        let is_tsv = |dir: &&PathBuf| dir.join(format!("{}.tsv", self.tsv[0])).is_file();
        let published = [place.join(self.folder), place.into()];
        let first = match self.published {
            Form::Classes([first, _]) | Form::Trec([first, _]) | Form::Mrpc([first, _]) => first,
            Form::Sst([first, ..]) => first,
        };
        tsv.iter()
            .find(is_tsv)
            .map(|dir| Files::Tsv(dir.clone()))
            .or_else(|| published.into_iter().find(|dir| dir.join(first).is_file()).map(Files::Published))
    }

    fn read(&self, files: &Files) -> Result<Set, Failure> {
        let mut reader = Reader { set: self.empty(), part: Vec::new() };
        match files {
            Files::Tsv(dir) => {
                for name in self.tsv {
                    let file = TextFile::read(&dir.join(format!("{name}.tsv")), Published::Senteval)?;
                    reader.tsv(&file)?;
                }
            }
            Files::Published(dir) => {
                let latin1 = |name: &str| TextFile::read_latin1(&dir.join(name), Published::Senteval);
                match &self.published {
                    Form::Classes(names) => {
                        for (name, class) in names.iter().zip(["1", "0"]) {
                            for (_, sentence) in latin1(name)?.lines() {
                                reader.add(class, &[sentence]);
                            }
                        }
                        reader.end_part();
                    }
                    Form::Sst(names) => names.iter().try_for_each(|name| reader.sst(&latin1(name)?))?,
                    Form::Trec(names) => names.iter().try_for_each(|name| reader.trec(&latin1(name)?))?,
                    Form::Mrpc(names) => names.iter().try_for_each(|name| reader.mrpc(&latin1(name)?))?,
                }
            }
        }
        let Reader { set, .. } = reader;
        let (Files::Tsv(dir) | Files::Published(dir)) = files;
        if set.classes.len() < 2 {
            return Err(Published::Senteval.missing(format!("{}: fewer than two classes", dir.display())));
        }
        if set.parts.iter().any(|part| part.labels.is_empty()) {
            return Err(Published::Senteval.missing(format!("{}: a part is empty", dir.display())));
        }
        Ok(set)
    }

    fn empty(&self) -> Set {
        Set { name: self.name, pairs: self.pairs, classes: Vec::new(), parts: Vec::new() }
    }
}

/// Fills a set; labels stay text until a part ends.
struct Reader {
    set: Set,
    part: Vec<(String, Vec<String>)>,
}

impl Reader {
    fn add(&mut self, label: &str, sentences: &[&str]) {
        // SentEval gives its encoders a full stop for an empty sentence
        let sentence = |s: &&str| if s.trim().is_empty() { ".".into() } else { s.trim().to_owned() };
        self.part.push((label.trim().into(), sentences.iter().map(sentence).collect()));
    }

    /// Classes are those of the first part; later parts were checked against it.
    fn end_part(&mut self) {
        if self.set.parts.is_empty() {
            self.set.classes = self.part.iter().map(|(label, _)| label.clone()).collect();
            self.set.classes.sort();
            self.set.classes.dedup();
        }
        let mut part = Part::default();
        for (label, sentences) in self.part.drain(..) {
            let class = self.set.classes.binary_search(&label).unwrap_or(0);
            part.labels.push(class as u32);
            part.sentences.extend(sentences);
        }
        self.set.parts.push(part);
    }

    /// # Errors
    /// A label that the training part does not have.
    fn known(&self, file: &TextFile, line: usize, label: &str) -> Result<(), Failure> {
        let classes = &self.set.classes;
        if self.set.parts.is_empty() || classes.iter().any(|c| c == label.trim()) {
            return Ok(());
        }
        let known = classes.join(", ");
        Err(file.error(line, format!("the label '{label}' is not in the training part: {known}")))
    }

    fn tsv(&mut self, file: &TextFile) -> Result<(), Failure> {
        let (needed, form) =
            if self.set.pairs { (3, "label, sentence, sentence") } else { (2, "label, sentence") };
        for (line, text) in file.lines() {
            let fields: Vec<&str> = text.split('\t').collect();
            if fields.len() != needed {
                return Err(file.error(line, format!("{} fields, {needed} needed: {form}", fields.len())));
            }
            self.known(file, line, fields[0])?;
            self.add(fields[0], &fields[1..]);
        }
        self.end_part();
        Ok(())
    }

    fn sst(&mut self, file: &TextFile) -> Result<(), Failure> {
        for (line, text) in file.lines() {
            let Some((sentence, label)) = text.rsplit_once('\t') else {
                return Err(file.error(line, "one field, 2 needed: sentence, label"));
            };
            self.known(file, line, label)?;
            self.add(label, &[sentence]);
        }
        self.end_part();
        Ok(())
    }

    fn trec(&mut self, file: &TextFile) -> Result<(), Failure> {
        for (line, text) in file.lines() {
            let parts = text.split_once(' ').and_then(|(l, sentence)| Some((l.split_once(':')?.0, sentence)));
            let Some((label, sentence)) = parts else {
                return Err(file.error(line, "LABEL:detail and a sentence needed"));
            };
            self.known(file, line, label)?;
            self.add(label, &[sentence]);
        }
        self.end_part();
        Ok(())
    }

    fn mrpc(&mut self, file: &TextFile) -> Result<(), Failure> {
        for (line, text) in file.lines().skip(1) {
            let fields: Vec<&str> = text.split('\t').collect();
            let [label, _, _, first, second] = fields[..] else {
                return Err(file.error(
                    line,
                    format!("{} fields, 5 needed: label, two ids, two sentences", fields.len()),
                ));
            };
            self.known(file, line, label)?;
            self.add(label, &[first, second]);
        }
        self.end_part();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sets(files: &[(&str, &[u8])], names: &[&str]) -> Result<Vec<Set>, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let names: Vec<String> = names.iter().map(|n| (*n).into()).collect();
        load(&[dir.path().into()], &names).map_err(|failure| match failure {
            Failure::Error(message) => message.replace(&dir.path().display().to_string(), "DIR"),
            Failure::BrokenPipe | Failure::Interrupted(_) => panic!("no such failure"),
        })
    }

    #[test]
    fn tab_separated_files_are_read() {
        let found = sets(
            &[
                ("trec/train.tsv", b"NUM\tHow far ?\nLOC\tWhere ?\nNUM\t\n"),
                ("trec/test.tsv", b"LOC\tWhat county ?\n"),
                ("mrpc/train.tsv", b"1\ta\tb\n0\tc\td\n"),
                ("mrpc/test.tsv", b"0\te\tf\n"),
                ("mr/all.tsv", b"1\tgood\n0\tbad\n"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(found.iter().map(|s| s.name).collect::<Vec<_>>(), ["mr", "trec", "mrpc"]);
        assert_eq!(found[1].classes, ["LOC", "NUM"]);
        assert_eq!(found[1].parts[0].labels, [1, 0, 1]);
        assert_eq!(found[1].parts[0].sentences, ["How far ?", "Where ?", "."]);
        assert_eq!(found[1].parts[1].labels, [0]);
        assert_eq!(found[2].parts[0].sentences, ["a", "b", "c", "d"]);
        assert!(found[2].pairs && found[0].parts.len() == 1);
    }

    #[test]
    fn published_forms_are_read() {
        let found = sets(
            &[
                ("CR/custrev.pos", "caf\u{e9}\n".chars().map(|c| c as u8).collect::<Vec<_>>().as_slice()),
                ("CR/custrev.neg", b"bad\n"),
                ("SST/binary/sentiment-train", b"fine\t1\nnot\t0\n"),
                ("SST/binary/sentiment-dev", b"fine\t1\n"),
                ("SST/binary/sentiment-test", b"dull\t0\n"),
                ("TREC/train_5500.label", b"DESC:manner How ?\nNUM:dist How far ?\n"),
                ("TREC/TREC_10.label", b"NUM:dist How far is it ?\n"),
                (
                    "MRPC/msr_paraphrase_train.txt",
                    b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\tc\td\n",
                ),
                (
                    "MRPC/msr_paraphrase_test.txt",
                    b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\te\tf\n",
                ),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(found.iter().map(|s| s.name).collect::<Vec<_>>(), ["cr", "sst2", "trec", "mrpc"]);
        assert_eq!(
            (&found[0].parts[0].labels[..], &found[0].parts[0].sentences[0][..]),
            (&[1, 0][..], "café")
        );
        assert_eq!(
            found[1].parts.iter().map(|p| &p.labels[..]).collect::<Vec<_>>(),
            [&[1, 0][..], &[1], &[0]]
        );
        assert_eq!(found[2].classes, ["DESC", "NUM"]);
        assert_eq!(found[3].parts[1].sentences, ["e", "f"]);
    }

    #[test]
    fn malformed_files_are_named_by_line_with_where_to_get_them() {
        let fails = |files: &[(&str, &[u8])], names: &[&str], what: &str| {
            let error = sets(files, names).unwrap_err();
            assert!(error.starts_with(what), "{error}");
            assert!(error.contains("https://github.com/facebookresearch/SentEval"), "{error}");
        };
        fails(&[("mr/all.tsv", b"1\tgood\nbad\n")], &[], "DIR/mr/all.tsv:2: 1 fields, 2 needed");
        fails(&[("mr/all.tsv", b"1\tgood\n")], &[], "DIR/mr: fewer than two classes");
        fails(&[("trec/train.tsv", b"A\ta\nB\tb\n")], &[], "DIR/trec/test.tsv: ");
        let trec: [(&str, &[u8]); 2] = [("trec/train.tsv", b"A\ta\nB\tb\n"), ("trec/test.tsv", b"C\tc\n")];
        fails(&trec, &[], "DIR/trec/test.tsv:1: the label 'C' is not in the training part: A, B");
        fails(&[("x.txt", b"")], &[], "DIR: no set of SentEval");
        fails(&[("mr/all.tsv", b"1\ta\n0\tb\n")], &["cr"], "DIR: no set 'cr'");
        assert!(sets(&[], &["mnli"]).unwrap_err().contains("one of mr, cr"));
    }
}
