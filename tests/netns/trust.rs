//! Whether runtimes trust the proxy: each by its variable alone, what the proxy sees of those that do not, and what
//! `countersign doctor` says about it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use service::trust::{self, Bundle, VARIABLES, Variable};
use tests::sandbox::{HOME, PROGRAMS};
use tests::world::PAYMENTS;
use tests::{As, Clients, Egress, Mode, Output, Place, Workload, World};

const LONG: Duration = Duration::from_secs(240);

/// Those that any machine has on which these tests run; the others are asked where they are installed.
const ALWAYS: [&str; 6] = ["curl", "openssl", "node", "cargo", "python ssl", "python requests"];

/// `countersign doctor` where the application runs, with these variables of its environment and no others.
fn doctor(world: &World, billing: &Workload, variables: &[&Variable], args: &[&str]) -> Output {
    let bundle = Bundle::at(&billing.bundle());
    // Some toolchains are installed where only root looks; as root of no capability it is an application like any other.
    let who = match world.mode() {
        Mode::Root => As::Application(0),
        Mode::Rootless => As::Application(10_001),
    };
    let command = world.sandbox().command(billing.place(), who, format!("{PROGRAMS}/countersign"));
    let command = command.env("PATH", path()).env("PIP_CONFIG_FILE", "/dev/null");
    let command = variables.iter().fold(command, |c, variable| c.env(variable.name, variable.value(&bundle)));
    command.args(["doctor", "--bundle", &bundle.pem]).args(args).output(LONG).unwrap()
}

/// The runtimes of `tests/clients/setup`, then the machine's.
fn path() -> String {
    let cargo = PathBuf::from(env!("CARGO"));
    let of_cargo = cargo.parent().unwrap().display().to_string();
    let rest = std::env::var("PATH").unwrap_or_default();
    format!("{HOME}/clients/venv/bin:{of_cargo}:/usr/local/go/bin:{rest}:/usr/bin:/bin")
}

fn runtimes(output: &Output) -> Vec<Value> {
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    value["runtimes"].as_array().unwrap().clone()
}

fn trusting(output: &Output) -> BTreeSet<String> {
    let trusts = |found: &&Value| found["trusts"] == "yes";
    runtimes(output)
        .iter()
        .filter(trusts)
        .map(|found| found["runtime"].as_str().unwrap().to_owned())
        .collect()
}

fn only<'a>(runtimes: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    runtimes.into_iter().flat_map(|runtime| ["--only", runtime]).collect()
}

#[test]
fn each_variable_makes_its_runtimes_trust_the_proxy_and_without_it_none_does() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    let url = format!("https://{PAYMENTS}/v1/charges/42");
    let json = ["--url", &url, "-o", "json"];
    let none = doctor(&world, &billing, &[], &json);
    assert_eq!(none.exit, 3, "{} {}", none.text(), none.stderr);
    let installed: BTreeSet<String> =
        runtimes(&none).iter().map(|found| found["runtime"].as_str().unwrap().to_owned()).collect();
    for found in runtimes(&none) {
        assert_eq!(found["trusts"], "no", "{found}");
    }
    for runtime in ALWAYS {
        assert!(installed.contains(runtime), "{runtime} is not installed: tests/clients/setup");
    }
    let calls = |billing: &mut Workload| {
        billing.proxy().metric("countersign_request_duration_seconds_count", "").unwrap()
    };
    assert!(calls(&mut billing) < 0.5, "whoever does not trust the proxy asks it nothing");
    for variable in &VARIABLES {
        let mine: BTreeSet<String> = variable.read_by.iter().map(|name| (*name).to_owned()).collect();
        let asked: Vec<_> =
            mine.iter().filter(|name| installed.contains(*name)).map(String::as_str).collect();
        if asked.is_empty() {
            // One of a runtime that a CI run may be without; `make test-clients` is not.
            assert!(!Clients::installed().is_ok_and(|clients| clients.are_all()), "{}", variable.name);
            continue;
        }
        let before = calls(&mut billing);
        let args = [&json[..], &only(asked.iter().copied())].concat();
        let told = doctor(&world, &billing, &[variable], &args);
        let found = trusting(&told);
        assert_eq!(
            found.iter().map(String::as_str).collect::<Vec<_>>(),
            asked,
            "{} {}",
            variable.name,
            told.text()
        );
        assert_eq!(told.exit, 0, "{}", told.text());
        // It was the proxy that answered, to each of them.
        assert!(calls(&mut billing) - before >= (asked.len() - openssl(&asked)) as f64, "{}", variable.name);
    }
}

/// `s_client` completes a handshake and asks nothing.
fn openssl(asked: &[&str]) -> usize {
    usize::from(asked.contains(&"openssl"))
}

#[test]
fn doctor_needs_no_policy_and_says_what_to_set() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let some = only(["curl", "node", "python ssl"]);
    let none = doctor(&world, &billing, &[], &some);
    assert_eq!(none.exit, 3, "{none:?}");
    let bundle = billing.bundle();
    for line in [
        "Calling https://localhost:15021/".to_owned(),
        "3 of 3 do not trust the proxy, or may not:".to_owned(),
        format!("  set   SSL_CERT_FILE={bundle}"),
        format!("  set   NODE_EXTRA_CA_CERTS={bundle}"),
    ] {
        assert!(none.text().contains(&line), "no `{line}` in\n{}", none.text());
    }
    let all: Vec<_> = VARIABLES.iter().collect();
    let told = doctor(&world, &billing, &all, &some);
    assert!(told.exit == 0 && told.text().contains("All of them trust the proxy."), "{told:?}");
    // Where there is no proxy, that is what it says.
    let away = doctor(&world, &billing, &all, &["--url", "https://localhost:1/"]);
    assert!(away.exit == 1 && away.stderr.contains("nothing answers at localhost:1"), "{away:?}");
    let unknown = doctor(&world, &billing, &all, &["--only", "perl"]);
    assert!(unknown.exit == 2 && unknown.stderr.contains("curl, wget"), "{unknown:?}");
}

#[test]
fn the_three_signs_of_distrust_are_counted() {
    let mut world = World::started(Egress::Enforce).unwrap();
    let mut billing = world.billing().unwrap();
    let url = format!("https://{PAYMENTS}/v1/charges/42");
    let installed = |program: &str| tests::sandbox::find(program).is_ok();
    let mut seen = |args: &[&str]| {
        let (program, args) = args.split_first().unwrap();
        let mut count = || {
            ["alert", "eof_handshake", "eof_before_request"].map(|signal| {
                billing.proxy().metric("countersign_tls_untrusted_total", &format!("\"{signal}\"")).unwrap()
            })
        };
        let before = count();
        let output = world
            .sandbox()
            .command(Place::Client("billing"), As::Application(10_001), program)
            .args(args)
            .output(LONG)
            .unwrap();
        assert!(!output.success(), "{program} must not trust the proxy: {output:?}");
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let after = count();
            let grown: [bool; 3] = std::array::from_fn(|i| after[i] > before[i]);
            if grown.contains(&true) {
                return grown;
            }
            assert!(Instant::now() < deadline, "{program} was not counted");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!(seen(&["curl", "-sS", &url]), [true, false, false], "an alert is certain");
    let fetch = format!("fetch('{url}').catch((e) => {{ console.error(e); process.exit(1) }})");
    assert_eq!(seen(&["node", "-e", &fetch]), [false, true, false]);
    if installed("wget") {
        assert_eq!(seen(&["wget", "-qO-", "--tries=1", &url]), [false, false, true]);
    }
    // Whoever trusts it is not counted.
    let before = billing.proxy().metric("countersign_tls_untrusted_total", "").unwrap();
    assert_eq!(billing.payments("/v1/charges/42").send().unwrap().status, 200);
    assert!((billing.proxy().metric("countersign_tls_untrusted_total", "").unwrap() - before).abs() < 0.5);
    assert!(billing.proxy().logs().contains("CS2002"), "the log names whom it concerns");
}

#[test]
fn java_reads_the_trust_store_and_holds_every_root_for_trusted() {
    if tests::sandbox::find("keytool").is_err() {
        return;
    }
    let mut world = World::started(Egress::Enforce).unwrap();
    let billing = world.billing().unwrap();
    let bundle = Bundle::at(&billing.bundle());
    let list = ["-list", "-keystore", &bundle.pkcs12, "-storepass", trust::BUNDLE_PASSWORD];
    let listed = billing.bare_application("keytool").args(list).output(LONG).unwrap();
    let pem = world.sandbox().read(&bundle.pem).unwrap();
    let roots = pem.matches("BEGIN CERTIFICATE").count();
    assert_eq!(listed.text().matches("trustedCertEntry").count(), roots, "{listed:?}");
    assert!(!listed.text().contains("PrivateKeyEntry"));
    let wrong = billing.bare_application("keytool").args(list[..3].iter()).args(["-storepass", "another"]);
    assert!(!wrong.output(LONG).unwrap().success());
}
