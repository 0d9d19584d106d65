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
