//! Manual pages, one for each command.

use std::path::Path;

use clap::CommandFactory;
use serde_json::json;

use crate::app::App;
use crate::args::Cli;
use crate::exit_code::{Failure, Outcome};

pub(super) fn write(app: &App, folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).map_err(|error| Failure::file("create", folder, error))?;
    let mut pages = Vec::new();
    // Global flags belong to every page.
    let mut command = Cli::command();
    command.build();
    write_page(&command, folder, &mut pages)?;
    app.output.line(format!(
        "Wrote {} pages to {}; read one with: man {}",
        pages.len(),
        folder.display(),
        folder.join("0g-compute-cli.1").display()
    ));
    app.output
        .json(&json!({ "folder": folder, "pages": pages }));
    Ok(())
}

fn write_page(command: &clap::Command, folder: &Path, pages: &mut Vec<String>) -> Outcome {
    let man = clap_mangen::Man::new(command.clone());
    let file = man.get_filename();
    let path = folder.join(&file);
    let mut page = Vec::new();
    man.render(&mut page)
        .and_then(|()| std::fs::write(&path, page))
        .map_err(|error| Failure::file("write", &path, error))?;
    pages.push(file);
    let inner = command.get_subcommands();
    inner
        .filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
        .try_for_each(|inner| write_page(inner, folder, pages))
}
