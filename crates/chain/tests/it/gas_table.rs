//! The table of gas in `docs/compatibility.md`.

use std::{fmt::Write as _, fs, path::PathBuf};

const BEGIN: &str = "<!-- gas: written by `cargo xtask gas` -->\n";
const END: &str = "<!-- gas: end -->";

/// What the published contracts need for a call, as far as it is known.
#[derive(Clone, Copy)]
pub(crate) enum Published {
    /// Gas used, and the limit that the node asks for.
    Needs { used: u64, limit: u64 },
    /// Nobody measured it.
    Unknown,
}

pub(crate) fn published(used: u64, limit: u64) -> Published {
    Published::Needs { used, limit }
}

/// One call in the most expensive circumstances that its name tells.
pub(crate) struct Row {
    pub(crate) name: String,
    /// What the Python client grants; it does not make every call.
    pub(crate) python: Option<u64>,
    pub(crate) published: Published,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Row {
    /// What is wrong with the price, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self {
            name, used, limit, ..
        } = self;
        if self.python.is_some_and(|granted| *limit >= granted) {
            return Some(format!(
                "{name} needs a limit of {limit}, more than Python grants"
            ));
        }
        match self.published {
            Published::Needs {
                used: published_used,
                limit: published_limit,
            } if *used >= published_used || *limit >= published_limit => Some(format!(
                "{name} needs {used} / {limit}, the published contracts {published_used} / {published_limit}"
            )),
            _ => None,
        }
    }

    pub(crate) fn line(&self) -> String {
        let number = |value: u64| {
            if value == 0 {
                "–".to_owned()
            } else {
                spaced(value)
            }
        };
        let python = number(self.python.unwrap_or(0));
        let (published_used, published_limit) = match self.published {
            Published::Needs { used, limit } => (number(used), number(limit)),
            Published::Unknown => (number(0), number(0)),
        };
        let fails = match (self.python, self.published) {
            (Some(granted), Published::Needs { limit, .. }) if limit > granted => ", fails",
            _ => "",
        };
        let (used, limit) = (number(self.used), number(self.limit));
        format!(
            "| {} | {python} | {published_used} | {published_limit}{fails} | {used} | {limit} |",
            self.name
        )
    }
}

/// 1234567 as `1 234 567`.
fn spaced(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// The whole table as Markdown.
pub(crate) fn text(rows: &[Row]) -> String {
    let mut table = String::from(
        "| call | Python grants | published: used | published: limit | ours: used | ours: limit |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let _ = writeln!(table, "{}", row.line());
    }
    table
}

/// Fails where the document has another table; with `ZEROG_WRITE_GAS_TABLE` set it is written instead.
pub(crate) fn compare_or_write(table: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    let text = fs::read_to_string(&path).unwrap();
    let start = text
        .find(BEGIN)
        .expect("the document has a place for the table")
        + BEGIN.len();
    let end = text.find(END).expect("the place for the table has an end");
    if std::env::var_os("ZEROG_WRITE_GAS_TABLE").is_some() {
        fs::write(&path, [&text[..start], table, &text[end..]].concat()).unwrap();
        return;
    }
    assert!(
        text[start..end] == *table,
        "the gas table of docs/compatibility.md is out of date; run `cargo xtask gas`"
    );
}
