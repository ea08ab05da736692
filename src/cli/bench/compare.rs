//! A run beside an earlier one: ratios of medians with their intervals.

use super::BenchError;
use super::stats::{Series, ratio_of_medians};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// What two runs should have in common to be compared, beside what was measured.
const SETTINGS: [&str; 5] = ["machine", "device", "threads", "model", "conditions"];

/// An earlier run's JSON.
pub(super) struct Earlier<'a> {
    path: &'a Path,
    json: Value,
}

impl<'a> Earlier<'a> {
    pub(super) fn read(path: &'a Path) -> Result<Self, BenchError> {
        let bytes = std::fs::read(path).map_err(|source| BenchError::Read { path: path.into(), source })?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|e| refuse(path, e))?;
        if !json["series"].is_array() {
            return Err(refuse(path, "no 'series' in it: not what `berthier bench … --json` prints"));
        }
        Ok(Self { path, json })
    }

    /// The samples of a series; none where the run has no such series.
    fn samples(&self, name: &str) -> Result<Option<Vec<f64>>, BenchError> {
        let all = self.json["series"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(series) = all.iter().find(|series| series["name"] == name) else {
            return Ok(None);
        };
        let numbers: Option<Vec<f64>> =
            series["samples"].as_array().and_then(|s| s.iter().map(Value::as_f64).collect());
        match numbers {
            Some(numbers) if !numbers.is_empty() => Ok(Some(numbers)),
            _ => Err(refuse(self.path, format!("'{name}': samples that are no numbers, or none"))),
        }
    }

    /// The table and its JSON. `now` is this run's JSON with its settings.
    pub(super) fn compare(&self, now: &Value, series: &[Series]) -> Result<(String, Value), BenchError> {
        let (mut table, mut rows) = (String::new(), Vec::new());
        for setting in SETTINGS {
            let (then, now) = (&self.json[setting], &now[setting]);
            if then != now {
                // a String takes every write
                let _ = writeln!(table, "other {setting} then: {then}; now: {now}");
            }
        }
        let _ = writeln!(
            table,
            "now / then ({}), medians, 95 % interval\n\n{:<36} {:>8} {:>18}",
            self.path.display(),
            "",
            "ratio",
            "interval"
        );
        for s in series {
            let Some(then) = self.samples(&s.name)? else { continue };
            let (ratio, low, high) = ratio_of_medians(&s.samples, &then);
            let verdict = match (low > 1.0, high < 1.0) {
                (false, false) => "no difference shown",
                (more, _) if more == s.less_is_better => "worse",
                _ => "better",
            };
            let _ = writeln!(
                table,
                "{:<36} {ratio:>8.3} {:>18} {verdict}",
                s.name,
                format!("{low:.3} to {high:.3}")
            );
            rows.push(json!({"name": s.name, "ratio": ratio, "interval": [low, high], "verdict": verdict}));
        }
        if rows.is_empty() {
            return Err(refuse(self.path, "no series in common with this run"));
        }
        table.pop();
        Ok((table, json!({"file": self.path, "rows": rows})))
    }
}

fn refuse(path: &Path, message: impl std::fmt::Display) -> BenchError {
    BenchError::Unfit(format!("{}: {message}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, factor: f64, less_is_better: bool) -> Series {
        let samples = (0..40).map(|i| factor * (100.0 + f64::from(i % 7))).collect();
        Series { name: name.into(), unit: "us", less_is_better, samples }
    }

    fn earlier(json: &Value) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json.to_string()).unwrap();
        file
    }

    #[test]
    fn runs_are_compared_by_name_and_direction() {
        let then = [series("a", 1.0, true), series("b", 1.0, false), series("c", 1.0, true)];
        let file = earlier(&json!({
            "threads": 1, "series": then.iter().map(Series::json).collect::<Vec<_>>(),
        }));
        let now = [
            series("a", 2.0, true),
            series("b", 2.0, false),
            series("c", 1.001, true),
            series("d", 1.0, true),
        ];
        let (table, json) =
            Earlier::read(file.path()).unwrap().compare(&json!({"threads": 2}), &now).unwrap();
        let verdicts: Vec<_> =
            json["rows"].as_array().unwrap().iter().map(|r| r["verdict"].clone()).collect();
        assert_eq!(verdicts, ["worse", "better", "no difference shown"]);
        assert!(table.starts_with("other threads then: 1; now: 2"), "{table}");
    }

    #[test]
    fn other_files_are_refused() {
        let compare = |json: &Value| {
            let file = earlier(json);
            let earlier = Earlier::read(file.path())?;
            earlier.compare(&json!({}), &[series("a", 1.0, true)]).map(drop)
        };
        let message = |json: Value| compare(&json).unwrap_err().to_string();
        assert!(message(json!({})).contains("no 'series'"));
        assert!(message(json!({"series": []})).contains("in common"));
        assert!(message(json!({"series": [{"name": "a", "samples": ["x"]}]})).contains("no numbers"));
        assert!(message(json!({"series": [{"name": "a", "samples": []}]})).contains("or none"));
    }
}
