//! What people and programs see: data on standard output, talk on standard error.
//!
//! Tables have the widths, separators and cuts of the published command line.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use zerog_sdk::amount::format_0g;
use zerog_sdk::{Address, Progress};

/// How this run talks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    color: bool,
    bars: bool,
}

impl Output {
    /// Decides by flag, environment and terminal.
    pub(crate) fn new(json: bool) -> Self {
        let set = |name: &str| {
            std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
        };
        let color = (std::io::stdout().is_terminal() || set("CLICOLOR_FORCE")) && !set("NO_COLOR");
        Self {
            json,
            color: color && !json,
            bars: std::io::stderr().is_terminal() && !json,
        }
    }

    /// Whether `--json` was given.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// One line of a command's documented output; nothing with `--json`.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        if !self.json {
            write_stdout(text.as_ref());
        }
    }

    /// The result as JSON, with `--json`.
    pub(crate) fn json(self, value: &impl Serialize) {
        if self.json {
            match serde_json::to_value(value).map(with_checksums) {
                Ok(value) => write_stdout(&format!("{value:#}")),
                Err(error) => note(&format!("the result cannot be written as JSON: {error}")),
            }
        }
    }

    /// A table, or nothing with `--json`.
    pub(crate) fn table(self, table: &Table) {
        self.line(table.render(self.color));
    }

    /// A yellow warning on standard error.
    pub(crate) fn warn(self, text: impl AsRef<str>) {
        let text = text.as_ref();
        if std::io::stderr().is_terminal() && self.color {
            note(&format!("\x1b[33m{text}\x1b[0m"))
        } else {
            note(text)
        }
    }

    /// Talk on standard error; with `--json` too, since it is no data.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        note(text.as_ref());
    }

    /// Shows the progress of one operation until it is dropped.
    pub(crate) fn progress(self) -> ProgressLine {
        ProgressLine {
            output: self,
            bar: None,
            last: String::new(),
            told: None,
        }
    }

    /// Says why the command failed.
    pub(crate) fn failure(self, failure: &crate::exit_code::Failure) {
        if self.json {
            let body = serde_json::json!({
                "error": failure.message, "code": failure.code, "exit_code": failure.exit_code,
            });
            note(&body.to_string());
        } else if failure.exit_code == crate::exit_code::USAGE {
            note(&format!("Error: {failure}"));
        } else if failure.exit_code == crate::exit_code::INTERRUPTED {
            note(&failure.message);
        } else {
            note(&format!("✗ Operation failed: {failure}"));
        }
    }
}

/// Addresses as the tables show them, with their EIP-55 checksum, so that the same address is always the same text.
fn with_checksums(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(match text.parse::<Address>() {
            Ok(address) if text.len() == 42 => address.to_string(),
            _ => text,
        }),
        Value::Array(items) => items.into_iter().map(with_checksums).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, member)| (name, with_checksums(member)))
            .collect(),
        other => other,
    }
}

fn write_stdout(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A closed pipe means that nobody reads any more.
    if writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(i32::from(crate::exit_code::OK));
    }
}

/// Raw bytes on standard output, for logs.
pub(crate) fn write_text(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .is_err()
    {
        std::process::exit(i32::from(crate::exit_code::OK));
    }
}

fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A progress bar on a terminal, plain lines elsewhere, JSON lines with `--json`; all on standard error.
pub(crate) struct ProgressLine {
    output: Output,
    bar: Option<ProgressBar>,
    last: String,
    /// State and tenth of the training that was last told where there is no bar.
    told: Option<(String, u64)>,
}

/// Notices of this run; each is worth saying once.
static NOTICES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl ProgressLine {
    /// Shows one piece of news.
    pub(crate) fn show(&mut self, progress: &Progress) {
        if self.output.json {
            if let Ok(value) = serde_json::to_value(progress) {
                note(&with_checksums(value).to_string());
            }
            return;
        }
        match progress {
            Progress::Step { text } => self.say(&format!("{}...", capitalised(text))),
            Progress::Notice { text }
                if NOTICES
                    .lock()
                    .is_ok_and(|mut notices| notices.insert(text.clone())) =>
            {
                self.say(text);
            }
            // Said before in this run.
            Progress::Notice { .. } => {}
            Progress::Funded {
                service,
                provider,
                amount,
            } => {
                self.say(&format!(
                    "Moved {} 0G to the {service} sub-account with {provider}.",
                    format_0g(*amount)
                ));
            }
            Progress::Transfer {
                done_bytes,
                total_bytes,
            } => self.transfer(*done_bytes, *total_bytes),
            Progress::Adapter { state } => self.say(&format!("  Adapter state: {state}")),
            Progress::Task {
                state,
                step,
                total_steps,
                ..
            } => {
                let text = task_text(progress);
                match (self.output.bars, step, total_steps) {
                    (true, Some(step), Some(total)) => self.draw(*step, *total, &text),
                    (true, ..) => self.spin(&text),
                    (false, step, total) => {
                        // A file of progress lines should stay short.
                        let tenth =
                            step.unwrap_or(0).saturating_mul(10) / total.unwrap_or(1).max(1);
                        let news = Some((state.clone(), tenth));
                        if self.told != news {
                            self.told = news;
                            self.say(&text);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, text: &str) {
        if self.last == text {
            return;
        }
        self.last = text.to_owned();
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn transfer(&mut self, done: u64, total: Option<u64>) {
        if !self.output.bars {
            return;
        }
        let text = format!("{:.1} MiB", done as f64 / 1_048_576.0);
        match total {
            Some(total) => self.draw(done, total, &text),
            None => self.spin(&text),
        }
        if total == Some(done) {
            self.clear();
        }
    }

    fn draw(&mut self, done: u64, total: u64, text: &str) {
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}")
                .expect("the template is fixed and valid");
            ProgressBar::new(total).with_style(style)
        });
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(text.to_owned());
    }

    fn spin(&mut self, text: &str) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(text.to_owned());
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A task's state in one line: `Training: step 40/120, loss 1.2345, eval loss 1.3456, 850 tokens/s, 12 s left`.
fn task_text(progress: &Progress) -> String {
    let Progress::Task {
        state,
        step,
        total_steps,
        loss,
        eval_loss,
        tokens_per_s,
        eta_s,
        queue_position,
        stage,
        ..
    } = progress
    else {
        return String::new();
    };
    let mut parts = Vec::new();
    if let (Some(step), Some(total)) = (step, total_steps) {
        parts.push(format!("step {step}/{total}"));
    }
    if let Some(loss) = loss {
        parts.push(format!("loss {loss:.4}"));
    }
    if let Some(loss) = eval_loss {
        parts.push(format!("eval loss {loss:.4}"));
    }
    if let Some(speed) = tokens_per_s.filter(|_| state == "Training") {
        parts.push(format!("{speed:.0} tokens/s"));
    }
    if let Some(eta) = eta_s.filter(|eta| *eta > 0.0) {
        parts.push(format!("{eta:.0} s left"));
    }
    if let Some(position) = queue_position.filter(|position| *position > 0) {
        parts.push(format!("{position} ahead in the queue"));
    }
    if let Some(stage) = stage.as_ref().filter(|_| parts.is_empty()) {
        parts.push(stage.clone());
    }
    if parts.is_empty() {
        state.clone()
    } else {
        format!("{state}: {}", parts.join(", "))
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

/// A table with Unicode borders. A column's width includes one space of padding on each side.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    widths: Vec<usize>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    cells: Vec<String>,
    highlighted: bool,
}

impl Table {
    /// A table without head.
    pub(crate) fn new(widths: &[usize]) -> Self {
        Self {
            widths: widths.to_vec(),
            rows: Vec::new(),
        }
    }

    /// A table with a head.
    pub(crate) fn with_head(columns: &[(&str, usize)]) -> Self {
        let mut table = Self::new(&columns.iter().map(|(_, width)| *width).collect::<Vec<_>>());
        table.push(
            columns.iter().map(|(head, _)| (*head).to_owned()).collect(),
            true,
        );
        table
    }

    /// Adds a row; a cell may have several lines.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.push(cells.to_vec(), false);
    }

    /// Adds a row that is blue on a terminal.
    pub(crate) fn highlighted_row<const N: usize>(&mut self, cells: [String; N]) {
        self.push(cells.to_vec(), true);
    }

    fn push(&mut self, mut cells: Vec<String>, highlighted: bool) {
        cells.resize(self.widths.len(), String::new());
        self.rows.push(Row { cells, highlighted });
    }

    /// The table as text, without a line end at the end.
    pub(crate) fn render(&self, color: bool) -> String {
        let (grey, blue, plain) = if color {
            ("\x1b[90m", "\x1b[34m", "\x1b[39m")
        } else {
            ("", "", "")
        };
        let border = |left: &str, middle: &str, right: &str| {
            let segments: Vec<String> =
                self.widths.iter().map(|width| "─".repeat(*width)).collect();
            format!("{grey}{left}{}{right}{plain}", segments.join(middle))
        };
        let mut lines = vec![border("┌", "┬", "┐")];
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                lines.push(border("├", "┼", "┤"));
            }
            let cells: Vec<Vec<&str>> = row
                .cells
                .iter()
                .map(|cell| cell.split('\n').collect())
                .collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                let mut text = format!("{grey}│{plain}");
                for (cell, width) in cells.iter().zip(&self.widths) {
                    let content = fitted(
                        cell.get(line).copied().unwrap_or(""),
                        width.saturating_sub(2),
                    );
                    let paint = if row.highlighted { blue } else { "" };
                    let end = if row.highlighted { plain } else { "" };
                    text.push_str(&format!(" {paint}{content}{end} {grey}│{plain}"));
                }
                lines.push(text);
            }
        }
        lines.push(border("└", "┴", "┘"));
        lines.join("\n")
    }
}

/// Text padded to a width; what is too long ends in `…`.
fn fitted(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length > width {
        let cut: String = text.chars().take(width.saturating_sub(1)).collect();
        return format!("{cut}…");
    }
    format!("{text}{}", " ".repeat(width - length))
}

/// Text broken hard after every `width` characters.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    let lines: Vec<String> = characters
        .chunks(width.max(1))
        .map(|line| line.iter().collect())
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_json_have_their_checksum() {
        let value = serde_json::json!({
            "a": ["0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc", 1, null],
            "b": {"c": "3c44cdddb6a900fa2b585dd299e03d12fa4293bc", "d": "0x12"},
        });
        let expected = serde_json::json!({
            "a": ["0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC", 1, null],
            "b": {"c": "3c44cdddb6a900fa2b585dd299e03d12fa4293bc", "d": "0x12"},
        });
        assert_eq!(with_checksums(value), expected);
    }

    /// The published example of the providers' table, character by character.
    #[test]
    fn the_provider_table_equals_the_published_one() {
        let mut table = Table::new(&[50, 50]);
        table.highlighted_row([
            "Provider 1".into(),
            "0x940b4a101CaBa9be04b16A7363cafa29C1660B0d".into(),
        ]);
        table.row(["Available".into(), "✓".into()]);
        table.row([
            "Price Per Byte in Dataset (0G)".into(),
            "0.000000500000000000".into(),
        ]);
        let expected = "\
┌──────────────────────────────────────────────────┬──────────────────────────────────────────────────┐
│ Provider 1                                       │ 0x940b4a101CaBa9be04b16A7363cafa29C1660B0d       │
├──────────────────────────────────────────────────┼──────────────────────────────────────────────────┤
│ Available                                        │ ✓                                                │
├──────────────────────────────────────────────────┼──────────────────────────────────────────────────┤
│ Price Per Byte in Dataset (0G)                   │ 0.000000500000000000                             │
└──────────────────────────────────────────────────┴──────────────────────────────────────────────────┘";
        assert_eq!(table.render(false), expected);
    }

    /// The published example of the task list.
    #[test]
    fn the_task_list_equals_the_published_one() {
        let mut table = Table::with_head(&[("ID", 50), ("Created At", 30), ("Status", 30)]);
        table.row([
            "6b607314-88b0-4fef-91e7-43227a54de57".into(),
            "2026-03-11T01:20:07.644Z".into(),
            "Delivered".into(),
        ]);
        let expected = "\
┌──────────────────────────────────────────────────┬──────────────────────────────┬──────────────────────────────┐
│ ID                                               │ Created At                   │ Status                       │
├──────────────────────────────────────────────────┼──────────────────────────────┼──────────────────────────────┤
│ 6b607314-88b0-4fef-91e7-43227a54de57             │ 2026-03-11T01:20:07.644Z     │ Delivered                    │
└──────────────────────────────────────────────────┴──────────────────────────────┴──────────────────────────────┘";
        assert_eq!(table.render(false), expected);
    }

    /// The published example of one task.
    #[test]
    fn the_task_table_equals_the_published_one() {
        let mut table = Table::with_head(&[("Field", 35), ("Value", 85)]);
        table.row(["Progress".into(), "Delivered".into()]);
        let expected = "\
┌───────────────────────────────────┬─────────────────────────────────────────────────────────────────────────────────────┐
│ Field                             │ Value                                                                               │
├───────────────────────────────────┼─────────────────────────────────────────────────────────────────────────────────────┤
│ Progress                          │ Delivered                                                                           │
└───────────────────────────────────┴─────────────────────────────────────────────────────────────────────────────────────┘";
        assert_eq!(table.render(false), expected);
    }

    #[test]
    fn long_cells_break_or_are_cut() {
        let mut table = Table::with_head(&[("Name", 6), ("Text", 7)]);
        table.row(["abcdefg".into(), wrapped("123456789", 5)]);
        let text = table.render(false);
        assert!(text.contains("│ abc… │ 12345 │"), "{text}");
        assert!(text.contains("│      │ 6789  │"), "{text}");
        assert_eq!(wrapped("", 5), "");
        let widths: std::collections::BTreeSet<usize> =
            text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths.len(), 1, "every line is equally wide");
    }

    #[test]
    fn colors_only_add_escapes() {
        let mut table = Table::with_head(&[("A", 6)]);
        table.row(["x".into()]);
        let colored = table.render(true);
        assert!(colored.contains("\x1b[34mA   \x1b[39m"), "{colored:?}");
        let stripped = colored
            .replace("\x1b[90m", "")
            .replace("\x1b[34m", "")
            .replace("\x1b[39m", "");
        assert_eq!(stripped, table.render(false));
    }

    #[test]
    fn task_progress_is_one_line() {
        let progress = Progress::Task {
            state: "Training".into(),
            step: Some(40),
            total_steps: Some(120),
            loss: Some(1.23456),
            eval_loss: Some(1.5),
            learning_rate: Some(2e-4),
            tokens_per_s: Some(849.6),
            eta_s: Some(11.6),
            queue_position: None,
            stage: Some("training".into()),
        };
        assert_eq!(
            task_text(&progress),
            "Training: step 40/120, loss 1.2346, eval loss 1.5000, 850 tokens/s, 12 s left"
        );
        let waiting = Progress::Task {
            state: "Init".into(),
            step: None,
            total_steps: None,
            loss: None,
            eval_loss: None,
            learning_rate: None,
            tokens_per_s: None,
            eta_s: None,
            queue_position: Some(2),
            stage: None,
        };
        assert_eq!(task_text(&waiting), "Init: 2 ahead in the queue");
    }
}
