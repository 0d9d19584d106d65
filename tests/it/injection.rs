//! What injection writes into pods is what our programs take: the arguments of the golden files, given to the programs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn injected_arguments_are_those_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut commands = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(root.join("golden/kubernetes/injected")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let snapshot: Value = serde_json::from_str(text.splitn(3, "---\n").nth(2).unwrap()).unwrap();
        let spec = &snapshot["pod"]["spec"];
        let lists = [&spec["initContainers"], &spec["containers"]];
        for container in lists.iter().filter_map(|list| list.as_array()).flatten() {
            if container["name"].as_str().unwrap().starts_with("countersign-") {
                commands.insert(words(&container["args"]));
                let hooks = &container["lifecycle"];
                for run in [&container["startupProbe"], &hooks["postStart"], &hooks["preStop"]] {
                    let command = &run["exec"]["command"];
                    commands.extend(command.is_array().then(|| words(command)[1..].to_vec()));
                }
            }
        }
    }
    assert!(commands.len() >= 5, "capture, serve in three ways, and hooks: {commands:?}");
    for mut command in commands {
        // Help is printed only once everything before it has been understood.
        command.push("--help".to_owned());
        let output = Command::new(program()).args(&command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
    }
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Beside the folder of this test's own program; `make build` puts it there.
fn program() -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).unwrap().join("countersign-proxy")
}
