//! The harness itself: what it promises to the tests that rest on it.

use std::time::Duration;

use tests::sandbox::{HOME, PRIVATE};
use tests::{As, Mode, Place, Sandbox};

const SHORT: Duration = Duration::from_secs(10);

fn each_mode(check: impl Fn(Sandbox)) {
    let sandbox = Sandbox::new().unwrap();
    if sandbox.mode() == Mode::Root {
        check(Sandbox::rootless().unwrap());
    }
    check(sandbox);
}

#[test]
fn a_client_finds_the_service_side_by_name_over_both_families() {
    each_mode(|sandbox| {
        sandbox.add_client("client").unwrap();
        sandbox.add_host("payments.demo.test", 10).unwrap();
        for (family, address) in [("ahostsv4", "10.77.0.10"), ("ahostsv6", "fd77::a")] {
            let getent = sandbox.command(Place::Client("client"), As::Application(10_001), "getent");
            let found = getent.args([family, "payments.demo.test"]).output(SHORT).unwrap();
            assert!(found.text().starts_with(address), "{family}: {}{}", found.text(), found.stderr);
        }
    });
}

#[test]
fn a_process_with_a_lifeline_ends_with_it() {
    each_mode(|sandbox| {
        let mut process = sandbox
            .command(Place::Service, As::Root, "sh")
            .args(["-c", "cat > /dev/null"])
            .start_with_lifeline("cat", &sandbox.outside(format!("{HOME}/logs/cat.log")))
            .unwrap();
        assert!(process.is_alive());
        assert_eq!(process.finish(SHORT).unwrap(), 0);
    });
}

#[test]
fn an_application_has_no_capabilities_and_sees_nothing_private() {
    each_mode(|sandbox| {
        sandbox.add_client("client").unwrap();
        sandbox.write(format!("{PRIVATE}/token"), "secret").unwrap();
        let script =
            format!("grep -E 'Cap(Eff|Bnd|Prm)|NoNewPrivs' /proc/self/status; ls {PRIVATE}; echo $$; true");
        let output = sandbox
            .command(Place::Client("client"), As::Application(10_001), "sh")
            .args(["-c", &script])
            .output(SHORT)
            .unwrap();
        let text = output.text();
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(text.contains(&format!("{name}:\t0000000000000000")), "{text}");
        }
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        assert!(!text.contains("token"), "{text}");
        assert!(text.trim().ends_with('1'), "it is the first process that it sees: {text}");
    });
}

#[test]
fn nothing_stays_when_it_is_dropped() {
    each_mode(|sandbox| {
        sandbox.add_client("client").unwrap();
        let log = sandbox.outside(format!("{HOME}/logs/sleep.log"));
        let process = sandbox
            .command(Place::Client("client"), As::Application(10_001), "sleep")
            .arg("1000")
            .start("sleep", &log)
            .unwrap();
        let alive = |pid: u32| std::path::Path::new(&format!("/proc/{pid}/exe")).exists();
        let deadline = std::time::Instant::now() + SHORT;
        let pid = loop {
            if let Some(pid) = process.pid()
                && std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
            {
                break pid;
            }
            assert!(std::time::Instant::now() < deadline, "sleep has not started: {}", process.tail());
        };
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        let state = sandbox.outside(HOME);
        drop(sandbox);
        assert!(!state.exists());
        let deadline = std::time::Instant::now() + SHORT;
        while alive(pid) || std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            assert!(std::time::Instant::now() < deadline, "sleep still runs");
        }
    });
}
