//! Method × client × result: what must be in it, what was found, and its two forms.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// Between these lines the document is written by this module.
const BEGIN: &str = "<!-- written by `cargo xtask interop --write`; do not edit -->";
const END: &str = "<!-- end of what `cargo xtask interop --write` wrote -->";
const DOCUMENT: &str = "docs/compatibility.md";

/// What a client found for one method.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    client: String,
    method: String,
    result: String,
    reason: String,
    instead: String,
}

/// A packet that was not for loopback: a name that was asked for, or an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt(String);

/// The tables as `interop/methods.json` wants them.
pub(super) struct Table {
    parts: Vec<Part>,
    /// Hosts that a client of the lane asks for on its own, by lane.
    expected_hosts: BTreeMap<String, BTreeMap<String, String>>,
}

struct Part {
    title: String,
    clients: Vec<(String, String)>,
    groups: Vec<(String, Vec<Method>)>,
}

struct Method {
    name: String,
    clients: Vec<String>,
}

/// Every line that a lane's clients wrote.
pub(super) fn read_results(path: &Path) -> anyhow::Result<Vec<Cell>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path)?;
    text.lines()
        .map(|line| {
            let cell: Value = serde_json::from_str(line)
                .with_context(|| format!("{}: {line}", path.display()))?;
            let member = |name: &str| cell[name].as_str().unwrap_or_default().to_owned();
            Ok(Cell {
                client: member("client"),
                method: member("method"),
                result: member("result"),
                reason: member("reason"),
                instead: member("instead"),
            })
        })
        .collect()
}

/// What the lane's recorder wrote when the lane had ended.
pub(super) fn read_attempts(path: &Path) -> anyhow::Result<BTreeSet<Attempt>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("the recorder left no {}", path.display()))?;
    let attempts: Vec<Value> = serde_json::from_str(&text)?;
    Ok(attempts
        .iter()
        .map(|attempt| match attempt["name"].as_str() {
            Some(name) => Attempt(name.to_owned()),
            None => Attempt(format!(
                "{} port {}",
                attempt["address"].as_str().unwrap_or_default(),
                attempt["port"]
            )),
        })
        .collect())
}

impl Table {
    pub(super) fn load(root: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(root.join("interop/methods.json"))?;
        let methods: Value = serde_json::from_str(&text).context("interop/methods.json")?;
        let parts = list(&methods["tables"]).map(part).collect();
        let expected_hosts = methods["expected_hosts"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(lane, hosts)| {
                let hosts = hosts.as_object().into_iter().flatten();
                let hosts = hosts
                    .map(|(host, why)| (host.clone(), why.as_str().unwrap_or_default().to_owned()));
                (lane.clone(), hosts.collect())
            })
            .collect();
        Ok(Self {
            parts,
            expected_hosts,
        })
    }

    /// Everything that keeps the suite from passing.
    pub(super) fn problems(
        &self,
        cells: &[Cell],
        attempts: &[(String, Attempt)],
        lanes: &[&str],
    ) -> Vec<String> {
        let mut problems = Vec::new();
        let mut known = BTreeSet::new();
        for part in &self.parts {
            for method in part.groups.iter().flat_map(|(_, methods)| methods) {
                for client in &method.clients {
                    known.insert((client.as_str(), method.name.as_str()));
                    let found: Vec<_> = find(cells, client, &method.name).collect();
                    let was_run = lanes.contains(&client.as_str())
                        && (method.name != SHARED_METHOD || lanes.contains(&SHARED_LANE));
                    match found.as_slice() {
                        [] if was_run => {
                            problems.push(format!("{client}: `{}` was not reached", method.name))
                        }
                        [] => {}
                        [cell] if cell.result == "fail" => {
                            problems.push(format!("{client}: `{}`: {}", method.name, cell.reason));
                        }
                        [_] => {}
                        _ => problems.push(format!("{client}: `{}` was run twice", method.name)),
                    }
                }
            }
        }
        for cell in cells {
            if !known.contains(&(cell.client.as_str(), cell.method.as_str())) {
                problems.push(format!(
                    "{}: `{}` is not in interop/methods.json",
                    cell.client, cell.method
                ));
            }
        }
        for (lane, Attempt(host)) in attempts {
            let is_expected = self
                .expected_hosts
                .get(lane)
                .is_some_and(|hosts| hosts.contains_key(host));
            if !is_expected {
                problems.push(format!("{lane}: something asked for {host}"));
            }
        }
        problems
    }

    /// One line a method, for reading while it scrolls.
    pub(super) fn for_terminal(&self, cells: &[Cell]) -> String {
        let mut text = String::new();
        for part in &self.parts {
            let width = part
                .groups
                .iter()
                .flat_map(|(_, methods)| methods)
                .map(|method| method.name.len())
                .max()
                .unwrap_or(0);
            text.push_str(&format!("\n{:width$}", part.title));
            for (_, name) in &part.clients {
                text.push_str(&format!("  {name}"));
            }
            text.push('\n');
            for (group, methods) in &part.groups {
                text.push_str(&format!("  {group}\n"));
                for method in methods {
                    text.push_str(&format!("{:width$}", method.name));
                    for (client, name) in &part.clients {
                        let mark = mark(method, client, cells);
                        let column = name.chars().count();
                        text.push_str(&format!("  {mark:column$}"));
                    }
                    text.push('\n');
                }
            }
        }
        text
    }

    /// The same as Markdown, with the reasons as notes.
    pub(super) fn for_document(&self, cells: &[Cell]) -> String {
        let mut text = String::new();
        let mut notes: Vec<(&str, &str, &str)> = Vec::new();
        for part in &self.parts {
            let names: Vec<_> = part.clients.iter().map(|(_, name)| name.as_str()).collect();
            text.push_str(&format!(
                "\n### {}\n\n| method | {} |\n|---|",
                part.title,
                names.join(" | ")
            ));
            text.push_str(&":-:|".repeat(names.len()));
            text.push('\n');
            for (group, methods) in &part.groups {
                text.push_str(&format!("| *{group}* |{}\n", " |".repeat(names.len())));
                for method in methods {
                    text.push_str(&format!("| `{}` |", method.name));
                    for (client, _) in &part.clients {
                        let mut entry = mark(method, client, cells).to_owned();
                        if let Some(cell) = find(cells, client, &method.name).next()
                            && !cell.reason.is_empty()
                        {
                            let note = (
                                cell.result.as_str(),
                                cell.reason.as_str(),
                                cell.instead.as_str(),
                            );
                            let number = notes
                                .iter()
                                .position(|known| *known == note)
                                .unwrap_or_else(|| {
                                    notes.push(note);
                                    notes.len() - 1
                                });
                            entry.push_str(&format!(" {}", number + 1));
                        }
                        text.push_str(&format!(" {entry} |"));
                    }
                    text.push('\n');
                }
            }
        }
        text.push('\n');
        for (number, (result, reason, instead)) in notes.iter().enumerate() {
            text.push_str(&format!(
                "{}. {}: {reason}. Instead: {instead}.\n",
                number + 1,
                capitalized(result)
            ));
        }
        text.push_str(
            "\nHosts that clients ask for on their own, without a chance to reach them here:\n\n",
        );
        for (lane, hosts) in &self.expected_hosts {
            for (host, why) in hosts {
                text.push_str(&format!("- {lane}: `{host}`, {why}\n"));
            }
        }
        text
    }
}

/// Run in a lane of its own, after the other methods of its table.
const SHARED_METHOD: &str = "files that the other clients stored";
const SHARED_LANE: &str = "storage-shared";

fn part(value: &Value) -> Part {
    let clients: Vec<(String, String)> = list(&value["clients"])
        .map(|client| (string(&client["id"]), string(&client["name"])))
        .collect();
    let all: Vec<String> = clients.iter().map(|(id, _)| id.clone()).collect();
    let groups = list(&value["groups"])
        .map(|group| {
            let methods = list(&group["methods"])
                .map(|method| Method {
                    name: string(&method["method"]),
                    clients: match method["clients"].as_array() {
                        Some(some) => some.iter().map(string).collect(),
                        None => all.clone(),
                    },
                })
                .collect();
            (string(&group["group"]), methods)
        })
        .collect();
    Part {
        title: string(&value["title"]),
        clients,
        groups,
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn find<'cells>(
    cells: &'cells [Cell],
    client: &'cells str,
    method: &'cells str,
) -> impl Iterator<Item = &'cells Cell> {
    cells
        .iter()
        .filter(move |cell| cell.client == client && cell.method == method)
}

fn mark(method: &Method, client: &str, cells: &[Cell]) -> &'static str {
    if !method.clients.iter().any(|offered| offered == client) {
        return "–";
    }
    match find(cells, client, &method.name)
        .next()
        .map(|cell| cell.result.as_str())
    {
        Some("pass") => "yes",
        Some("pass with preparation") => "prep",
        Some("client bug") => "bug",
        Some("needs a public network") => "net",
        Some(_) => "FAIL",
        None => "?",
    }
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().chain(letters).collect())
        .unwrap_or_default()
}

/// Puts the tables into the document.
pub(super) fn write_document(root: &Path, tables: &str) -> anyhow::Result<()> {
    let path = root.join(DOCUMENT);
    let (before, _, after) = split(&fs::read_to_string(&path)?)?;
    fs::write(path, format!("{before}{BEGIN}\n{tables}\n{END}{after}"))?;
    Ok(())
}

/// A problem when the document says something else.
pub(super) fn compare_document(root: &Path, tables: &str) -> anyhow::Result<Option<String>> {
    let (_, found, _) = split(&fs::read_to_string(root.join(DOCUMENT))?)?;
    let is_current = found.trim() == tables.trim();
    Ok((!is_current).then(|| {
        format!("{DOCUMENT} has another table: run `cargo xtask interop --write` and look at the difference")
    }))
}

fn split(document: &str) -> anyhow::Result<(String, String, String)> {
    let Some((before, rest)) = document.split_once(BEGIN) else {
        bail!("{DOCUMENT} has no line `{BEGIN}`");
    };
    let Some((between, after)) = rest.split_once(END) else {
        bail!("{DOCUMENT} has no line `{END}`");
    };
    Ok((before.to_owned(), between.to_owned(), after.to_owned()))
}
