//! What our own texts tell people to do can be done: commands, flags and files that they name exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::sandbox::programs;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every text that tells somebody what to do, with where it is.
fn texts() -> Vec<(String, String)> {
    let table = model::error::TABLE.iter();
    let mut texts: Vec<_> =
        table.map(|entry| (entry.text.to_owned(), format!("{} {}", entry.meaning, entry.remedy))).collect();
    for directory in ["", "docs", "docs/reference", "docs/decisions"] {
        for entry in std::fs::read_dir(root().join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                texts.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    texts
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|part| !part.contains('\n'))
}

#[test]
fn every_command_that_a_text_names_exists() {
    let programs = programs().unwrap();
    let mut commands = BTreeSet::new();
    for (place, text) in texts() {
        for part in quoted(&text) {
            let words: Vec<&str> = part.split_whitespace().take_while(|word| *word != "…").collect();
            if matches!(words.first(), Some(&("countersign" | "countersign-proxy" | "countersign-control"))) {
                commands.insert((words.join(" "), place.clone()));
            }
        }
    }
    assert!(commands.len() > 10, "{commands:?}");
    for (command, place) in commands {
        let mut words = command.split_whitespace();
        let program = programs.join(words.next().unwrap());
        // With --help nothing is done, but an unknown command or flag before it is still an error.
        let output = Command::new(program).args(words).arg("--help").env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{place} names `{command}`: {said}");
    }
}

#[test]
fn every_page_is_linked_from_the_first_one() {
    let first = std::fs::read_to_string(root().join("README.md")).unwrap();
    let pages: Vec<_> = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(pages.len() > 15);
    for page in pages {
        let name = page.file_name().into_string().unwrap();
        assert!(first.contains(&format!("(docs/{name})")), "docs/{name}");
    }
}

#[test]
fn the_page_of_metrics_has_those_of_the_programs_and_no_others() {
    let mut counted = BTreeSet::new();
    for folder in ["crates/proxy/src", "crates/control/src", "crates/service/src"] {
        names_in(&root().join(folder), &mut counted);
    }
    assert!(counted.len() > 25, "{counted:?}");
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let listed: BTreeSet<_> = rows
        .filter(|(name, rest)| name.starts_with("countersign_") && rest.starts_with(" |"))
        .filter(|(name, _)| name.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric()))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(listed, counted, "left: in docs/metrics.md; right: in the code");
}

/// Every text of the code that is the name of a metric of ours.
fn names_in(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let quoted = text.split('"').filter(|part| part.starts_with("countersign_"));
            let is_name =
                |part: &&str| part.bytes().all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit());
            names.extend(quoted.filter(is_name).map(str::to_owned));
        }
    }
}

#[test]
fn what_is_shipped_unwinds_so_that_a_panic_ends_one_connection_only() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("[profile.release]") && !manifest.contains("panic ="), "{manifest}");
}

#[test]
fn every_flag_and_file_that_a_remedy_names_exists() {
    let settings = ["countersign-proxy.md", "countersign-control.md"]
        .map(|page| std::fs::read_to_string(root().join("docs/reference").join(page)).unwrap())
        .join("\n");
    for entry in model::error::TABLE {
        for flag in quoted(entry.remedy).filter(|part| part.starts_with("--")) {
            assert!(settings.contains(&format!("`{flag} ")), "{} names {flag}", entry.text);
        }
        for word in entry.remedy.split(|c: char| c.is_whitespace() || c == '(' || c == ')') {
            let word = word.trim_end_matches(['.', ',', ';', ':']);
            if word.starts_with("docs/") {
                assert!(root().join(word).exists(), "{} names {word}", entry.text);
            }
        }
    }
}
