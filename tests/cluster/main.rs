//! Tests against a real Kubernetes API server, which they share; each has a namespace of its own.
//!
//! Where there is none (`.ci/kubernetes` was not run, or was skipped), each shows as ignored, and why is said first;
//! with `KUBERNETES_REQUIRED` set that is a failure.
//!
//! A file here lists its tests: `pub(crate) const TESTS: &[Test] = tests![a_pod_has_a_name, …];`, and [`all`] the files.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod attestation;
mod custom_resources;
mod helm;
mod in_cluster;
mod server;
mod webhook;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use libtest_mimic::{Arguments, Failed, Trial};
use tests::Cluster;
use tests::cluster::built;

/// A test: its name, and what it does with the cluster.
type Test = (&'static str, fn(&Cluster));

/// The tests of a module, by their functions' names.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        &[$((concat!(module_path!(), "::", stringify!($name)), $name as fn(&tests::Cluster))),+]
    };
}
pub(crate) use tests;

fn all() -> Vec<Test> {
    [
        attestation::TESTS,
        custom_resources::TESTS,
        helm::TESTS,
        in_cluster::TESTS,
        server::TESTS,
        webhook::TESTS,
    ]
    .concat()
}

#[expect(clippy::print_stderr, reason = "what a test target says")]
fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = built().err();
    if let Some(why) = &missing {
        eprintln!("skipped: {why:#}");
        if std::env::var_os("KUBERNETES_REQUIRED").is_some() {
            return ExitCode::FAILURE;
        }
    }
    // Started by the first test that runs, ended after the last.
    let cluster: Arc<Mutex<Option<Arc<Cluster>>>> = Arc::default();
    let trials = all().into_iter().map(|(name, test)| {
        let shared = cluster.clone();
        let name = name.strip_prefix("cluster::").unwrap_or(name);
        let run = move || with_shared(&shared, test);
        Trial::test(name, run).with_ignored_flag(missing.is_some())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(cluster.lock().map(|mut cluster| cluster.take()));
    conclusion.exit_code()
}

fn with_shared(shared: &Mutex<Option<Arc<Cluster>>>, test: fn(&Cluster)) -> Result<(), Failed> {
    let cluster = {
        let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shared.is_none() {
            *shared = Some(Arc::new(Cluster::start().map_err(|error| format!("{error:#}"))?));
        }
        shared.clone().unwrap()
    };
    test(&cluster);
    Ok(())
}
