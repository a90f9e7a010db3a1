//! `cargo xtask interop`: the published clients, unmodified, against a network of this build.
//!
//! `interop/README.md` says what is run and what a result means. Each lane below runs in a network namespace of its own,
//! so that nothing can reach the public network and every attempt is known by the client that made it.

mod install;
mod lane;
mod table;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, bail};

pub(crate) use self::install::Clients;
use self::table::{Attempt, Cell, Table};
use crate::check::cargo;

/// What to do with the table in `docs/compatibility.md`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Document {
    /// Compare it with what was found.
    Check,
    /// Replace it with what was found.
    Write,
}

/// Everything that runs at the same time as something else, in the order of its start: the longest first.
pub(crate) const LANES: [&str; 9] = [
    "cli",
    "python",
    "cjs",
    "esm",
    "storage-shared",
    "storage-python",
    "storage-ts",
    "storage-go",
    "storage-ours",
];

/// Where one lane keeps its network, its files and what it found.
pub(crate) struct LaneFolder {
    pub(crate) folder: PathBuf,
}

impl LaneFolder {
    fn results(&self) -> PathBuf {
        self.folder.join("results.jsonl")
    }

    fn attempts(&self) -> PathBuf {
        self.folder.join("attempts.json")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("lane.log")
    }
}

/// Runs the lanes (all, or the named ones) and prints the table; with all lanes, the document is checked or written.
#[allow(clippy::print_stdout, reason = "the table is what this command is for")]
pub(crate) fn run(
    root: &Path,
    clients: &Clients,
    only: &[String],
    document: Document,
) -> anyhow::Result<()> {
    if let Some(unknown) = only.iter().find(|name| !LANES.contains(&name.as_str())) {
        bail!(
            "there is no lane {unknown}; the lanes are {}",
            LANES.join(", ")
        );
    }
    let work = root.join("target/interop");
    fs::create_dir_all(&work)?;
    // A build, the one below or an earlier one of this run, may have put another file in the place of the one that runs;
    // the system still knows that one.
    let lane_program = work.join("lane-program");
    fs::copy("/proc/self/exe", &lane_program).context("cannot copy the running program")?;
    cargo(root, &["build", "--workspace", "--bins", "--quiet"], &[])?;
    clients.place_helper(root)?;
    let table = Table::load(root)?;
    let chosen: Vec<&str> = LANES
        .into_iter()
        .filter(|name| only.is_empty() || only.iter().any(|chosen| chosen == name))
        .collect();

    let open = Mutex::new(VecDeque::from(chosen.clone()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    loop {
                        let next = open.lock().map_or(None, |mut open| open.pop_front());
                        let Some(name) = next else { return Ok(()) };
                        start_lane(
                            root,
                            clients,
                            &lane_program,
                            name,
                            &lane_folder(&work, name),
                        )
                        .with_context(|| format!("lane {name}"))?;
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a lane panicked")))
    })?;

    let mut cells: Vec<Cell> = Vec::new();
    let mut attempts: Vec<(String, Attempt)> = Vec::new();
    for name in &chosen {
        let folder = lane_folder(&work, name);
        cells.extend(table::read_results(&folder.results())?);
        for attempt in table::read_attempts(&folder.attempts())? {
            attempts.push(((*name).to_owned(), attempt));
        }
    }
    println!("{}", table.for_terminal(&cells));
    let mut problems = table.problems(&cells, &attempts, &chosen);
    if only.is_empty() {
        let text = table.for_document(&cells);
        if document == Document::Write && problems.is_empty() {
            table::write_document(root, &text)?;
        } else if document == Document::Check {
            problems.extend(table::compare_document(root, &text)?);
        }
    }
    for problem in &problems {
        eprintln!("interop: {problem}");
    }
    if !problems.is_empty() {
        bail!(
            "{} problem(s); each lane's log is in {}",
            problems.len(),
            work.display()
        );
    }
    Ok(())
}

/// The part that runs inside the namespace.
pub(crate) fn run_lane(root: &Path, name: &str) -> anyhow::Result<()> {
    lane::run(
        root,
        name,
        &Clients::installed(root),
        &lane_folder(&root.join("target/interop"), name),
    )
}

fn lane_folder(work: &Path, name: &str) -> LaneFolder {
    LaneFolder {
        folder: work.join(name),
    }
}

/// Runs one lane in a namespace of its own. A client's failure is in the results, not in the status.
fn start_lane(
    root: &Path,
    clients: &Clients,
    lane_program: &Path,
    name: &str,
    folder: &LaneFolder,
) -> anyhow::Result<()> {
    if folder.folder.exists() {
        fs::remove_dir_all(&folder.folder)?;
    }
    fs::create_dir_all(&folder.folder)?;
    let started = Instant::now();
    let log = fs::File::create(folder.log())?;
    let status = Command::new("unshare")
        .args(clients.unshare_flags())
        .arg("python3")
        .arg(root.join("interop/isolate.py"))
        .arg(folder.attempts())
        .arg(lane_program)
        .args(["interop-lane", name])
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("cannot start unshare")?;
    let note = if status.success() {
        ""
    } else {
        ", not to its end"
    };
    eprintln!("    {name}: {} s{note}", started.elapsed().as_secs());
    Ok(())
}
