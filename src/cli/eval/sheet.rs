//! Results as rows and columns, written for people, as JSON or as CSV.

use super::super::report::{Failure, grouped, print};
use super::args::OutputArgs;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    Text(String),
    Count(usize),
    /// With every digit in JSON and CSV; NaN is none.
    Number(f64),
    None,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// A column: its key in JSON and CSV, its title for people, and the decimals shown to them.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    key: String,
    title: String,
    decimals: usize,
}

impl Column {
    pub(crate) fn new(key: impl Into<String>, title: impl Into<String>, decimals: usize) -> Self {
        Self { key: key.into(), title: title.into(), decimals }
    }
}

/// What an experiment found.
#[derive(Debug)]
pub(crate) struct Sheet {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Sheet {
    pub(crate) fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// # Panics
    /// If there is not a cell for each column.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        assert_eq!(row.len(), self.columns.len(), "a cell for each column");
        self.rows.push(row);
    }

    /// Prints it as was asked for. `context` is what the numbers depend on; `note` is for people.
    pub(crate) fn print(&self, output: &OutputArgs, context: Value, note: &str) -> Result<(), Failure> {
        let text = if output.json {
            let mut json = context;
            if let Some(object) = json.as_object_mut() {
                object.insert("rows".into(), self.json());
            }
            format!("{json:#}\n")
        } else if output.csv {
            self.csv()
        } else {
            format!("{}{note}", self.table())
        };
        print(&text)
    }

    fn json(&self) -> Value {
        let object = |row: &Vec<Cell>| -> Map<String, Value> {
            let cells = self.columns.iter().zip(row);
            let cells = cells.filter(|(_, cell)| **cell != Cell::None);
            cells.map(|(column, cell)| (column.key.clone(), value(cell))).collect()
        };
        self.rows.iter().map(object).map(Value::Object).collect()
    }

    fn csv(&self) -> String {
        let line = |fields: Vec<String>| fields.join(",") + "\n";
        let mut out = line(self.columns.iter().map(|c| quoted(&c.key)).collect());
        for row in &self.rows {
            out += &line(
                row.iter()
                    .map(|cell| match cell {
                        Cell::Text(text) => quoted(text),
                        Cell::Count(n) => n.to_string(),
                        Cell::Number(v) if v.is_finite() => v.to_string(),
                        Cell::Number(_) | Cell::None => String::new(),
                    })
                    .collect(),
            );
        }
        out
    }

    fn table(&self) -> String {
        let shown: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().zip(&self.columns).map(|(cell, c)| shown(cell, c.decimals)).collect())
            .collect();
        let width = |i: usize| {
            let cells = shown.iter().map(|row| row[i].chars().count());
            cells.max().unwrap_or(0).max(self.columns[i].title.chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let is_text = |i: usize| self.rows.iter().any(|row| matches!(row[i], Cell::Text(_)));
        let line = |fields: Vec<&str>| {
            let mut out = String::new();
            for (i, field) in fields.into_iter().enumerate() {
                let gap = if i > 0 { "  " } else { "" };
                let _ = match is_text(i) {
                    true => write!(out, "{gap}{field:<0$}", widths[i]),
                    false => write!(out, "{gap}{field:>0$}", widths[i]),
                };
            }
            out.trim_end().to_owned() + "\n"
        };
        let mut out = line(self.columns.iter().map(|c| &c.title[..]).collect());
        for row in &shown {
            out += &line(row.iter().map(String::as_str).collect());
        }
        out
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Text(text) => json!(text),
        Cell::Count(n) => json!(n),
        Cell::Number(v) => json!(v), // NaN becomes null
        Cell::None => Value::Null,
    }
}

fn shown(cell: &Cell, decimals: usize) -> String {
    match cell {
        Cell::Text(text) => text.clone(),
        Cell::Count(n) => grouped(*n as u64),
        Cell::Number(v) if v.is_finite() => format!("{v:.decimals$}"),
        Cell::Number(_) | Cell::None => "–".into(),
    }
}

/// A CSV field (RFC 4180).
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let columns = vec![
            Column::new("set", "set", 0),
            Column::new("pairs", "pairs", 0),
            Column::new("spearman", "ρ", 2),
        ];
        let mut sheet = Sheet::new(columns);
        sheet.push(vec!["a, \"b\"".into(), Cell::Count(1500), Cell::Number(82.03246731235654)]);
        sheet.push(vec!["é".into(), Cell::None, Cell::Number(f64::NAN)]);
        sheet
    }

    #[test]
    fn table_is_aligned() {
        assert_eq!(sheet().table(), "set     pairs      ρ\na, \"b\"  1,500  82.03\né           –      –\n");
    }

    #[test]
    fn csv_is_quoted_and_has_every_digit() {
        assert_eq!(sheet().csv(), "set,pairs,spearman\n\"a, \"\"b\"\"\",1500,82.03246731235654\né,,\n");
    }

    #[test]
    fn json_has_rows_by_key() {
        let expected = json!([
            {"set": "a, \"b\"", "pairs": 1500, "spearman": 82.03246731235654},
            {"set": "é", "spearman": null},
        ]);
        assert_eq!(sheet().json(), expected);
    }
}
