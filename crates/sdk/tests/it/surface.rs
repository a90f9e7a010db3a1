//! `docs/api.md` names functions that exist.

use std::path::Path;

/// Every Rust name of the table is a public function of the SDK.
#[test]
fn every_rust_name_of_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("../../docs/api.md")).unwrap();
    let mut sources = String::new();
    read_all(&root.join("src"), &mut sources);
    let mut checked = 0;
    for row in table
        .lines()
        .filter(|line| line.starts_with("| ") && line.split('|').count() == 6)
    {
        let rust = row.split('|').nth(2).unwrap_or_default();
        for name in rust.split('`').skip(1).step_by(2) {
            let function = name
                .split('(')
                .next()
                .unwrap()
                .rsplit(['.', ':'])
                .next()
                .unwrap();
            let is_there = ["pub async fn ", "pub fn "].iter().any(|kind| {
                sources.contains(&format!("{kind}{function}("))
                    || sources.contains(&format!("{kind}{function}<"))
            });
            assert!(
                is_there,
                "docs/api.md names `{name}`, which is no public function of the SDK"
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} names were found in the table");
}

fn read_all(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
