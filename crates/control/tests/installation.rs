//! What is done to an installation beside `serve`, with the sealing key in another place than the database.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use control::authority::Authority;
use control::keys::Keys;
use control::store::Store;
use control::{now, program};
use tempfile::TempDir;

/// Where `serve` has been once, with `--sealing-key`.
struct Installation {
    directory: TempDir,
}

impl Installation {
    async fn made() -> Self {
        service::tls_provider::install();
        let made = Self { directory: tempfile::tempdir().unwrap() };
        made.served().await;
        made
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("elsewhere.key")
    }

    /// What `serve` does with the store at its start; how many roots there are.
    async fn served(&self) -> usize {
        let store: Arc<dyn Store> = program::open_store(&self.state(), Some(&self.key())).await.unwrap();
        Keys::open(store.clone(), now()).await.unwrap();
        Authority::open(store, "example.org", now()).await.unwrap().now().roots().len()
    }

    /// Runs a subcommand over it; what it says on standard error, if it fails.
    fn run(&self, words: &[&str], sealing_key: Option<&Path>) -> Result<String, String> {
        run(words, &self.state(), sealing_key)
    }
}

fn run(words: &[&str], state: &Path, sealing_key: Option<&Path>) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-control"));
    command.env_clear().args(words).arg("--state").arg(state);
    if let Some(path) = sealing_key {
        command.arg("--sealing-key").arg(path);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Every subcommand that opens a state directory, with what else it needs.
fn subcommands(out: &str) -> [Vec<&str>; 3] {
    [
        vec!["rotate-ca", "--trust-domain", "example.org"],
        vec!["new-epoch"],
        vec!["discovery-export", "--issuer-url", "https://issuer.example", out],
    ]
}

#[tokio::test]
async fn the_sealing_key_is_the_one_that_serve_was_given() {
    let there = Installation::made().await;
    let out = there.directory.path().join("public");
    for words in subcommands(out.to_str().unwrap()) {
        there.run(&words, Some(&there.key())).unwrap_or_else(|said| panic!("{words:?}: {said}"));
    }
    assert!(out.join(".well-known/openid-configuration").exists() && out.join("keys").exists());
    assert_eq!(there.served().await, 2, "the next start has both roots");
}

#[tokio::test]
async fn no_key_is_made_for_a_database_that_is_there() {
    let there = Installation::made().await;
    let out = there.directory.path().join("public");
    for words in subcommands(out.to_str().unwrap()) {
        let said = there.run(&words, None).unwrap_err();
        assert!(said.contains("give its file with --sealing-key"), "{words:?}: {said}");
        // Another key opens nothing, and seals nothing either.
        let other = there.directory.path().join("other.key");
        std::fs::write(&other, [9; 32]).unwrap();
        let said = there.run(&words, Some(&other)).unwrap_err();
        assert!(said.contains("--sealing-key must be the file that `serve` is given"), "{words:?}: {said}");
    }
    assert!(!there.state().join("sealing.key").exists() && !out.exists());
    assert_eq!(there.served().await, 1);
    // `serve` makes none either.
    let Err(error) = program::open_store(&there.state(), None).await else { panic!("a key was made") };
    assert!(error.to_string().contains("--sealing-key"), "{error:#}");
    assert!(!there.state().join("sealing.key").exists());
}

#[test]
fn where_there_is_no_installation_none_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let (empty, missing) = (directory.path().join("empty"), directory.path().join("missing"));
    std::fs::create_dir(&empty).unwrap();
    let out = directory.path().join("public");
    for state in [&empty, &missing] {
        for words in subcommands(out.to_str().unwrap()) {
            let said = run(&words, state, None).unwrap_err();
            assert!(said.contains("has no control.db"), "{words:?}: {said}");
            assert!(said.contains("--state"), "{words:?}: {said}");
        }
    }
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    assert!(!missing.exists() && !out.exists());
}
