//! What people see on stderr: failures, warnings, the progress bar and the summary.

use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Why a command ended before its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// To be said on stderr.
    Error(String),
    /// Nobody reads stdout any more.
    BrokenPipe,
    /// A signal; says how to go on.
    Interrupted(String),
}

impl Failure {
    /// An error with its chain of causes. A cause that its parent's message quotes is not said twice.
    pub(crate) fn chain(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        Self::Error(message)
    }

    /// An error of a row, by what `name` calls it; any other as it is.
    pub(crate) fn at_row(error: berthier::Error, name: impl FnOnce(usize) -> Option<String>) -> Self {
        let (row, message) = if let berthier::Error::Row { row, message } = &error {
            (*row, message.clone())
        } else if let berthier::Error::NonFinite { rows: bad, why } = &error {
            (bad[0], (*why).into())
        } else {
            return error.into();
        };
        name(row).map_or_else(|| error.into(), |name| Self::Error(format!("{name}: {message}")))
    }

    /// An error of reading or writing `what`.
    pub(crate) fn io(what: impl Display, error: &std::io::Error) -> Self {
        Self::Error(format!("{what}: {error}"))
    }

    /// As [`io`](Self::io), for stdout and the like, where nobody reading is no error.
    pub(crate) fn stream(what: impl Display, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe { Self::BrokenPipe } else { Self::io(what, error) }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Error(message)
    }
}

impl From<berthier::Error> for Failure {
    fn from(error: berthier::Error) -> Self {
        Self::chain(&error)
    }
}

/// One line on stderr. A closed stderr is nobody's mistake, so what `eprintln!` panics on is ignored.
pub(crate) fn say(kind: &str, message: &str) {
    let kind = if kind.is_empty() { String::new() } else { format!("{kind}: ") };
    let _ = writeln!(std::io::stderr().lock(), "berthier: {kind}{message}");
}

/// Text on stdout.
///
/// # Errors
/// [`Failure::BrokenPipe`] if nobody reads it.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::stream("standard output", &e))
}

/// The bar, on a terminal, and messages that do not tear it.
#[derive(Debug)]
pub(crate) struct Report {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Report {
    /// No bar yet.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Starts the bar if stderr is a terminal. `total` is the number of input bytes, if it is known.
    pub(crate) fn start(&mut self, total: Option<u64>) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), "{bar:30} {percent:>3}% {msg}, ETA {eta}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}, {elapsed}"),
        };
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.enable_steady_tick(Duration::from_millis(250));
        self.bar = Some(bar);
    }

    /// Moves the bar to `position` input bytes.
    pub(crate) fn progress(&self, position: u64, rows: u64, speed: &Speed) {
        if let Some(bar) = &self.bar {
            bar.set_position(position);
            bar.set_message(format!("{} rows, {speed}", grouped(rows)));
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A sentence that `--quiet` hides.
    pub(crate) fn note(&self, message: &str) {
        if !self.quiet {
            self.above_bar("", message);
        }
    }

    /// Something the user should know; `--quiet` hides it.
    pub(crate) fn warn(&self, message: &str) {
        if !self.quiet {
            self.above_bar("warning", message);
        }
    }

    /// Everything that a model was loaded with an assumption about.
    pub(crate) fn warnings(&self, messages: &[String]) {
        messages.iter().for_each(|message| self.warn(message));
    }

    /// A row that was skipped; always said.
    pub(crate) fn bad_row(&self, message: &str) {
        self.above_bar("skipped", message);
    }

    fn above_bar(&self, kind: &str, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(kind, message)),
            None => say(kind, message),
        }
    }
}

/// Rows and tokens over a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
}

impl Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per_second = |n: u64| grouped((n as f64 / self.seconds.max(1e-9)).round() as u64);
        write!(f, "{} rows/s, {} tokens/s", per_second(self.rows), per_second(self.tokens))
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 row`, `2 rows`.
pub(crate) fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grouped_puts_a_comma_before_every_third_digit() {
        let expected =
            [(0, "0"), (999, "999"), (1000, "1,000"), (123_456, "123,456"), (1_234_567, "1,234,567")];
        for (n, text) in expected {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn chain_says_each_cause_once() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "gone");
        let error = berthier::Error::Io { path: "m/config.json".into(), source };
        let Failure::Error(message) = Failure::from(error) else { panic!("an error") };
        assert_eq!(message, "m/config.json: gone");
    }
}
