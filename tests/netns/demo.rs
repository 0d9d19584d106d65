//! The demo as a program: what it promises about its end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::{Footprint, sandbox};

/// Starts the demo and lets it run until its sandbox is there; with what it goes on saying.
fn begun() -> (Child, BufReader<std::process::ChildStdout>, u32) {
    let program = sandbox::programs().unwrap().join("demo");
    let mut demo = Command::new(program).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(demo.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("Running") {
        line.clear();
        assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the demo ended before it began");
    }
    let holder = sandbox::children(demo.id())[0];
    let init = sandbox::children(holder)[0];
    (demo, stdout, init)
}

fn gone(init: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while Path::new(&format!("/proc/{init}/ns/net")).exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::read_link(format!("/proc/{init}/ns/net")).is_err()
}

#[test]
fn the_demo_shows_the_main_job_from_end_to_end() {
    let program = sandbox::programs().unwrap().join("demo");
    for arguments in [&[][..], &["--rootless"]] {
        let output = Command::new(&program).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}");
        // However its lines are broken.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let all = words(&said);
        let mut rest = all.as_str();
        // What each step shows, in this order.
        for expected in [
            " 1  service ",
            "curl → 401 missing token",
            " 2  control plane ",
            "5 documents applied",
            "attested as spiffe://demo/ns/payments/sa/billing",
            " 3  capture ",
            "IPv4 and IPv6",
            "but not loopback",
            " 4  same curl ",
            "curl → 200 over HTTP/1.1 and IPv4, 200 over HTTP/2 and IPv6",
            "by spiffe://demo/ns/payments/sa/billing with a token that lives 300 s",
            "Python requests",
            "Node fetch",
            " 5  not allowed ",
            "403 CS5001 · service saw nothing",
            "nearest  policy payments/billing-charges but for its method",
            "remedy   `countersign explain ",
            "batch/nightly, that no policy names → 403 CS5005",
            "gets no caller (CS4002)",
            "and nothing passes",
            " 6  revoke ",
            "next call refused after ",
            "stays good until ",
            "calls pass again after ",
            "deleting the policy instead",
            "in `observe` they would pass without a credential",
            " 7  audit ",
            "audit verify → whole",
            "CALLER ",
            "payments/billing GET ",
            " 8  memory ",
            "none of the ",
            "8 of 8",
            "nothing left behind",
        ] {
            let expected = words(expected);
            let at = rest
                .find(&expected)
                .unwrap_or_else(|| panic!("{expected} is not shown, or too early:\n{said}"));
            rest = &rest[at + expected.len()..];
        }
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    for wait in [0, 150, 400] {
        let (mut demo, mut stdout, init) = begun();
        let mut footprint = Footprint::before();
        footprint.note_process(init);
        std::thread::sleep(Duration::from_millis(wait));
        let pid = rustix::process::Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(130), "{rest}");
        assert!(rest.contains("interrupted · nothing left behind"), "{rest}");
        assert!(gone(init));
        assert_eq!(footprint.processes_left(), Vec::<String>::new());
    }
}

#[test]
fn a_killed_demo_leaves_nothing_behind() {
    let (mut demo, _stdout, init) = begun();
    let mut footprint = Footprint::before();
    footprint.note_process(init);
    std::thread::sleep(Duration::from_millis(100));
    demo.kill().unwrap();
    demo.wait().unwrap();
    assert!(gone(init));
    assert_eq!(footprint.processes_left(), Vec::<String>::new());
}
