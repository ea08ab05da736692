//! STS data as they are published, and as plain tab-separated files.

use super::super::super::report::Failure;
use super::super::data::{Published, TextFile, file_name, files_below};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How far below the folder that was named data are looked for: SentEval's is three levels up.
const DEPTH: usize = 4;
/// What is judged where nothing is named: the sets of the literature, test parts only.
const STANDARD: [&str; 7] = ["sts12", "sts13", "sts14", "sts15", "sts16", "stsb-test", "sickr-test"];
/// SentEval and its successors leave this part of STS13 out: it is not free.
const NOT_FREE: (&str, &str) = ("sts13", "SMT");

/// Pairs of sentences with the similarity that people gave them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Set {
    pub(crate) name: String,
    /// In the order in which they appear.
    pub(crate) subsets: Vec<String>,
    pub(crate) pairs: Vec<Pair>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    /// Index into the set's subsets.
    pub(crate) subset: usize,
    pub(crate) gold: f64,
    pub(crate) sentences: [String; 2],
}

impl Set {
    /// The sentences of pair 0, of pair 1, …
    pub(crate) fn texts(&self) -> Vec<&str> {
        self.pairs.iter().flat_map(|p| p.sentences.iter().map(String::as_str)).collect()
    }

    pub(crate) fn gold(&self) -> Vec<f64> {
        self.pairs.iter().map(|p| p.gold).collect()
    }

    fn add(&mut self, subset: &str, gold: f64, sentences: [&str; 2]) {
        let index = self.subsets.iter().position(|s| s == subset).unwrap_or_else(|| {
            self.subsets.push(subset.into());
            self.subsets.len() - 1
        });
        let sentences = sentences.map(|s| s.trim().to_owned());
        self.pairs.push(Pair { subset: index, gold, sentences });
    }
}

/// Every set in the folders and files that were named, by name.
///
/// # Errors
/// A malformed line, by file and number; a folder without STS data.
pub(crate) fn load(places: &[PathBuf]) -> Result<BTreeMap<String, Set>, Failure> {
    let mut sets = BTreeMap::new();
    for place in places {
        let before = sets.len();
        if place.is_dir() {
            for path in files_below(place, DEPTH, Published::Sts)? {
                let direct = path.parent() == Some(place);
                if let Some(kind) = Kind::of(&path, direct) {
                    kind.read(&path, &mut sets)?;
                }
            }
            if sets.len() == before {
                return Err(Published::Sts.missing(format!("{}: no STS data in it", place.display())));
            }
        } else {
            Kind::of(place, true).unwrap_or(Kind::Tsv).read(place, &mut sets)?;
        }
    }
    Ok(sets)
}

/// The sets that were asked for by name, in that order.
///
/// # Errors
/// A name that there is no data for, with those that there are.
pub(crate) fn select(sets: BTreeMap<String, Set>, names: &[String]) -> Result<Vec<Set>, Failure> {
    let unknown = |name: &str| {
        let known = sets.keys().cloned().collect::<Vec<_>>().join(", ");
        Published::Sts.missing(format!("no set '{name}': there are {known}"))
    };
    if names.is_empty() {
        let standard: Vec<Set> = STANDARD.iter().filter_map(|name| sets.get(*name).cloned()).collect();
        return Ok(if standard.is_empty() { sets.into_values().collect() } else { standard });
    }
    let mut selected = Vec::new();
    for name in names {
        let name = name.to_lowercase();
        if name == "all" {
            selected.extend(sets.values().cloned());
        } else if let Some(set) = sets.get(&name) {
            selected.push(set.clone());
        } else if let Some(prefix) = name.strip_suffix("all").filter(|p| p.ends_with('-')) {
            let mut together = Set { name: name.clone(), ..Set::default() };
            for set in sets.values().filter(|s| s.name.starts_with(prefix)) {
                for pair in &set.pairs {
                    let [first, second] = &pair.sentences;
                    together.add(&set.subsets[pair.subset], pair.gold, [first, second]);
                }
            }
            if together.pairs.is_empty() {
                return Err(unknown(&name));
            }
            selected.push(together);
        } else {
            return Err(unknown(&name));
        }
    }
    Ok(selected)
}

/// The forms that the data are published in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `subset, score, sentence, sentence`; GLUE's STS-B by its header
    Tsv,
    /// `sts-test.csv` of the STS benchmark: tab-separated, no quotes
    Benchmark,
    /// `SICK_*.txt`: columns by header
    Sick,
    /// `STS.input.X.txt`, with the scores in `STS.gs.X.txt`
    Input,
}

impl Kind {
    /// By the file's name; `direct` if its folder was named by the user.
    fn of(path: &Path, direct: bool) -> Option<Self> {
        let name = file_name(path);
        if name.starts_with("STS") && name.contains("input") && name.ends_with(".txt") {
            Some(Self::Input)
        } else if name.starts_with("SICK") && name.ends_with(".txt") {
            Some(Self::Sick)
        } else if name.starts_with("sts-") && name.ends_with(".csv") {
            Some(Self::Benchmark)
        } else if name.ends_with(".tsv") && (direct || parent_name(path) == "STS-B") {
            Some(Self::Tsv)
        } else {
            None
        }
    }

    fn read(self, path: &Path, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
        let file = TextFile::read(path, Published::Sts)?;
        match self {
            Self::Tsv if file.lines().next().is_some_and(|(_, line)| line.starts_with("index\tgenre\t")) => {
                glue(&file, sets)
            }
            Self::Tsv => tsv(&file, sets),
            Self::Benchmark => benchmark(&file, sets),
            Self::Sick => sick(&file, sets),
            Self::Input => input(&file, sets),
        }
    }
}

fn tsv(file: &TextFile, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
    let set = set(sets, &stem(&file.path));
    for (line, text) in file.lines() {
        let fields: Vec<&str> = text.split('\t').collect();
        let [subset, score, first, second] = fields[..] else {
            return Err(file.error(
                line,
                format!("{} fields, 4 needed: subset, score, sentence, sentence", fields.len()),
            ));
        };
        set.add(subset, number(file, line, score)?, [first, second]);
    }
    some(file, set)
}

/// genre, file, year, number, score, sentence, sentence; some lines have sources behind.
fn benchmark(file: &TextFile, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
    let set = set(sets, &format!("stsb-{}", stem(&file.path).trim_start_matches("sts-")));
    for (line, text) in file.lines() {
        let fields: Vec<&str> = text.split('\t').collect();
        let [genre, _, _, _, score, first, second, ..] = fields[..] else {
            return Err(file.error(
                line,
                format!("{} fields, 7 needed: genre, file, year, number, score, two sentences", fields.len()),
            ));
        };
        set.add(genre, number(file, line, score)?, [first, second]);
    }
    some(file, set)
}

fn glue(file: &TextFile, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
    let set = set(sets, &format!("stsb-{}", stem(&file.path)));
    for row in table(file, ["genre", "sentence1", "sentence2", "score"], None)? {
        let (line, [genre, first, second, score], _) = row?;
        set.add(genre, number(file, line, score)?, [first, second]);
    }
    some(file, set)
}

fn sick(file: &TextFile, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
    let name = stem(&file.path);
    for row in table(file, ["sentence_A", "sentence_B", "relatedness_score"], Some("SemEval_set"))? {
        let (line, [first, second, score], part) = row?;
        let part = part.map_or_else(
            || ["train", "trial", "test"].into_iter().find(|p| name.contains(p)).unwrap_or("all").into(),
            str::to_lowercase,
        );
        // the trial part is used as further training data
        let set_name = if part == "trial" { "sickr-train".into() } else { format!("sickr-{part}") };
        set(sets, &set_name).add(&part, number(file, line, score)?, [first, second]);
    }
    if file.line_count() < 2 { Err(file.empty("pairs")) } else { Ok(()) }
}

fn input(file: &TextFile, sets: &mut BTreeMap<String, Set>) -> Result<(), Failure> {
    let name = file_name(&file.path);
    let gold = TextFile::read(&file.path.with_file_name(name.replacen("input", "gs", 1)), Published::Sts)?;
    let (_, subset) = name.split_once("input.").unwrap_or(("", &name));
    let subset = subset.trim_end_matches(".txt");
    let set_name = file
        .path
        .ancestors()
        .filter_map(|p| p.file_name()?.to_str()?.to_lowercase().get(..5).map(str::to_owned))
        .find(|p| STANDARD.contains(&&p[..]))
        .unwrap_or_else(|| parent_name(&file.path).to_lowercase());
    if (&set_name[..], subset) == NOT_FREE {
        return Ok(());
    }
    if file.line_count() != gold.line_count() {
        let (pairs, scores) = (file.line_count(), gold.line_count());
        let gold = gold.path.display();
        return Err(file.error(pairs, format!("{pairs} pairs, and {gold} has {scores} scores")));
    }
    let set = set(sets, &set_name);
    for ((line, pair), (_, score)) in file.lines().zip(gold.lines()) {
        // pairs without a score were not part of the evaluation
        if score.trim().is_empty() {
            continue;
        }
        // from the third field on: where the sentences come from
        let fields: Vec<&str> = pair.split('\t').collect();
        let [first, second, ..] = fields[..] else {
            return Err(file.error(line, "one field, two sentences needed"));
        };
        set.add(subset, number(&gold, line, score)?, [first, second]);
    }
    Ok(())
}

/// A row of a file with a header: its line, the fields of the wanted columns, the optional one.
type TableRow<'a, const N: usize> = Result<(usize, [&'a str; N], Option<&'a str>), Failure>;

/// The wanted columns of a tab-separated file whose first line names them.
fn table<'a, const N: usize>(
    file: &'a TextFile,
    wanted: [&str; N],
    optional: Option<&str>,
) -> Result<impl Iterator<Item = TableRow<'a, N>>, Failure> {
    let header: Vec<&str> = file.lines().next().map(|(_, l)| l.split('\t').collect()).unwrap_or_default();
    let position = |name: &str| header.iter().position(|h| h.trim() == name);
    let mut columns = [0; N];
    for (column, name) in columns.iter_mut().zip(wanted) {
        *column = position(name).ok_or_else(|| {
            let hint = if name == "score" { " (GLUE keeps the scores of its test part secret)" } else { "" };
            file.error(1, format!("no column '{name}'{hint}"))
        })?;
    }
    let optional = optional.and_then(position);
    Ok(file.lines().skip(1).map(move |(line, text)| {
        let fields: Vec<&str> = text.split('\t').collect();
        let needed = columns.iter().max().map_or(0, |c| c + 1);
        if fields.len() < needed {
            return Err(file.error(line, format!("{} fields, {needed} needed", fields.len())));
        }
        Ok((line, columns.map(|c| fields[c]), optional.and_then(|c| fields.get(c).copied())))
    }))
}

fn number(file: &TextFile, line: usize, score: &str) -> Result<f64, Failure> {
    match score.trim().parse() {
        Ok(number) if f64::is_finite(number) => Ok(number),
        _ => Err(file.error(line, format!("the score '{score}' is not a number"))),
    }
}

fn some(file: &TextFile, set: &Set) -> Result<(), Failure> {
    if set.pairs.is_empty() { Err(file.empty("pairs")) } else { Ok(()) }
}

fn set<'a>(sets: &'a mut BTreeMap<String, Set>, name: &str) -> &'a mut Set {
    sets.entry(name.into()).or_insert_with(|| Set { name: name.into(), ..Set::default() })
}

/// A file's name without its ending, in lower case.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn parent_name(path: &Path) -> String {
    path.parent().map(file_name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Sets of a folder with these files.
    fn sets(files: &[(&str, &str)]) -> Result<BTreeMap<String, Set>, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        load(&[dir.path().into()]).map_err(|failure| match failure {
            Failure::Error(message) => message.replace(&dir.path().display().to_string(), "DIR"),
            Failure::BrokenPipe | Failure::Interrupted(_) => panic!("no such failure"),
        })
    }

    fn pairs(set: &Set) -> Vec<(&str, f64, &str, &str)> {
        let pair = |p: &'_ Pair| (p.subset, p.gold);
        set.pairs
            .iter()
            .map(|p| (pair(p), &p.sentences))
            .map(|((subset, gold), [a, b])| (&set.subsets[subset][..], gold, &a[..], &b[..]))
            .collect()
    }

    #[test]
    fn tab_separated_files_are_sets_by_name() {
        let found = sets(&[
            ("sts12.tsv", "MSRpar\t4.4\tA \"b\t c\nMSRvid\t0\td\te\n"),
            ("sickr-test.tsv", "test\t3.3\tx\ty\n"),
            ("sickr-train.tsv", "trial\t1\tv\tw\n"),
            ("elsewhere/qrels.tsv", "1\t2\t3\n"),
            ("notes.md", "nothing"),
        ])
        .unwrap();
        assert_eq!(pairs(&found["sts12"]), [("MSRpar", 4.4, "A \"b", "c"), ("MSRvid", 0.0, "d", "e")]);
        let names = |sets: Vec<Set>| sets.into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(select(found.clone(), &[]).unwrap()), ["sts12", "sickr-test"]);
        let both = select(found.clone(), &["sickr-all".into(), "STS12".into()]).unwrap();
        assert_eq!(pairs(&both[0]), [("test", 3.3, "x", "y"), ("trial", 1.0, "v", "w")]);
        assert_eq!(names(both), ["sickr-all", "sts12"]);
        assert_eq!(names(select(found.clone(), &["all".into()]).unwrap()).len(), 3);
        assert!(select(found, &["sts13".into()]).is_err());
    }

    #[test]
    fn published_forms_are_read() {
        let found = sets(&[
            ("STS/STSBenchmark/sts-test.csv", "main-captions\tMSRvid\t2012test\t0024\t2.500\tA girl \"x.\tB.\thttp://\n"),
            ("STS-B/dev.tsv", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n\
              0\tmain-news\tf\t2012\t1\tnone\tnone\tA\tB\t5.000\n"),
            ("SICK/SICK_trial.txt", "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n4\tA\tB\t4.5\tNEUTRAL\n"),
            ("SICK/SICK_test_annotated.txt", "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\r\n6\tC\tD\t3.3\tNEUTRAL\r\n"),
            ("STS/STS13-en-test/STS.input.FNWN.txt", "A\tB\nC\tD\tsource\tsource\nE\tF\n"),
            ("STS/STS13-en-test/STS.gs.FNWN.txt", "0.6\n\n2\n"),
            ("STS/STS13-en-test/STS.input.SMT.txt", "A\tB\n"),
            ("STS/STS13-en-test/STS.gs.SMT.txt", "1\n"),
        ])
        .unwrap();
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            ["sickr-test", "sickr-train", "sts13", "stsb-dev", "stsb-test"]
        );
        assert_eq!(pairs(&found["stsb-test"]), [("main-captions", 2.5, "A girl \"x.", "B.")]);
        assert_eq!(pairs(&found["stsb-dev"]), [("main-news", 5.0, "A", "B")]);
        assert_eq!(pairs(&found["sickr-train"]), [("trial", 4.5, "A", "B")]);
        assert_eq!(pairs(&found["sickr-test"]), [("test", 3.3, "C", "D")]);
        assert_eq!(pairs(&found["sts13"]), [("FNWN", 0.6, "A", "B"), ("FNWN", 2.0, "E", "F")]);
    }

    #[test]
    fn malformed_files_are_named_by_line_with_where_to_get_them() {
        let fails = |files: &[(&str, &str)], what: &str| {
            let error = sets(files).unwrap_err();
            assert!(error.starts_with(what), "{error}");
            assert!(error.contains("https://ixa2.si.ehu.eus/stswiki"), "{error}");
        };
        fails(&[("a.tsv", "x\t1\ta\tb\nx\t1\ta\n")], "DIR/a.tsv:2: 3 fields, 4 needed");
        fails(&[("a.tsv", "x\tgood\ta\tb\n")], "DIR/a.tsv:1: the score 'good' is not a number");
        fails(&[("a.tsv", "x\tnan\ta\tb\n")], "DIR/a.tsv:1: the score 'nan' is not a number");
        fails(&[("a.tsv", "")], "DIR/a.tsv: no pairs in it");
        fails(&[("readme.txt", "")], "DIR: no STS data in it");
        fails(&[("sts-test.csv", "a\tb\n")], "DIR/sts-test.csv:1: 2 fields, 7 needed");
        fails(&[("SICK_train.txt", "pair_ID\tsentence_A\n")], "DIR/SICK_train.txt:1: no column 'sentence_B'");
        fails(&[("STS.input.x.txt", "a\tb\n")], "DIR/STS.gs.x.txt: ");
        fails(
            &[("STS.input.x.txt", "a\tb\n"), ("STS.gs.x.txt", "1\n2\n")],
            "DIR/STS.input.x.txt:1: 1 pairs, and DIR/STS.gs.x.txt has 2 scores",
        );
        fails(
            &[("STS-B/test.tsv", "index\tgenre\tsentence1\tsentence2\n")],
            "DIR/STS-B/test.tsv:1: no column 'score'",
        );
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.tsv"), b"x\t1\ta\tb\nx\t1\ta\xff\tb\n").unwrap();
        let Err(Failure::Error(error)) = load(&[dir.path().into()]) else { panic!("read") };
        assert!(error.contains("a.tsv:2: not UTF-8"), "{error}");
        let Err(Failure::Error(error)) = load(&[dir.path().join("absent")]) else { panic!("read") };
        assert!(error.contains("absent: ") && error.contains("published"), "{error}");
    }
}
