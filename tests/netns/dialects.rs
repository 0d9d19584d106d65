//! What the user of each client reads when the proxy refuses a call: the client's own words must have our code and the
//! reason, for a policy that says no and for a credential that can't be had.

use std::time::Duration;

use tests::clients::{Clients, Program};
use tests::{Egress, Workload, World};

use crate::eventually;

/// No policy covers it, and nothing listens there: the proxy answers by itself.
const REFUSED: &str = "refused.demo.test";
/// Covered, with a credential that nobody has issued yet when the control plane goes away.
const AWAY: &str = "away.demo.test";

/// What the answer's line begins with, and the reason phrase of HTTP/1.1.
struct Expected {
    host: &'static str,
    code: &'static str,
    line: &'static str,
    reason: &'static str,
    /// As kubectl and gRPC call it.
    kubernetes: [&'static str; 2],
    grpc: [&'static str; 3],
}

const DENIED: Expected = Expected {
    host: REFUSED,
    code: "CS5005",
    line: "CS5005 No policy covers it: no policy covers refused.demo.test:443 for ns/payments/sa/billing. \
           Write an AccessPolicy for it, or set the egress mode to `observe`. (countersign, decision ",
    reason: "403 No policy covers it CS5005",
    kubernetes: ["Forbidden): ", "Forbidden): "],
    grpc: ["StatusCode.PERMISSION_DENIED", "7 PERMISSION_DENIED: ", "code = PermissionDenied desc = "],
};

const UNAVAILABLE: Expected = Expected {
    host: AWAY,
    code: "CS6001",
    line: "CS6001 Control plane can't be reached: ",
    reason: "503 Control plane can't be reached CS6001",
    kubernetes: ["InternalError): an error on the server (\"", "ServiceUnavailable): "],
    grpc: ["StatusCode.UNAVAILABLE", "14 UNAVAILABLE: ", "code = Unavailable desc = "],
};

const DOCUMENTS: &str = r"
apiVersion: countersign.dev/v1alpha1
kind: Workload
metadata: { name: billing, namespace: payments }
spec:
  selector: { kubernetes.serviceaccount: billing }
  egress: enforce
---
apiVersion: countersign.dev/v1alpha1
kind: Destination
metadata: { name: away, namespace: payments }
spec: { hosts: [away.demo.test] }
---
apiVersion: countersign.dev/v1alpha1
kind: CredentialProvider
metadata: { name: away-token, namespace: payments }
spec: { jwt: { audience: [https://away.demo.test], ttl: 5m } }
---
apiVersion: countersign.dev/v1alpha1
kind: AccessPolicy
metadata: { name: billing-away, namespace: payments }
spec:
  workload: billing
  destination: away
  credential: away-token
  allow: [{}]
";

struct Scene {
    _world: World,
    clients: Clients,
    billing: Workload,
}

/// Both hosts, and a control plane that has gone by the time that a credential is needed.
fn scene() -> Scene {
    let mut world = World::started(Egress::Enforce).unwrap();
    let clients = Clients::installed().unwrap();
    world.sandbox().add_host(REFUSED, 30).unwrap();
    world.sandbox().add_host(AWAY, 31).unwrap();
    world.apply(DOCUMENTS).unwrap();
    let billing = world.billing().unwrap();
    world.control().kill9();
    let away = || billing.curl(&format!("https://{AWAY}/")).send().unwrap();
    eventually(Duration::from_secs(20), || away().code() == "CS6001");
    Scene { _world: world, clients, billing }
}

impl Scene {
    /// What the client's user reads: all of its output. It has failed.
    #[track_caller]
    fn reads(&self, program: Program<'_>, args: &[&str]) -> String {
        let client = self.billing.client(program).args(args);
        let bundle = self.billing.bundle();
        let variables = [
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "placeholder"),
            ("AWS_DEFAULT_REGION", "eu-central-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            // How often each asks again is measured elsewhere; here once is enough.
            ("AWS_MAX_ATTEMPTS", "1"),
            ("npm_config_fetch_retries", "0"),
            // A `cafile` in the machine's npmrc would switch NODE_EXTRA_CA_CERTS off.
            ("npm_config_cafile", &bundle),
            ("npm_config_update_notifier", "false"),
        ];
        let client = variables.iter().fold(client, |client, (name, value)| client.env(name, value));
        let output = client.output(Duration::from_secs(60)).unwrap();
        assert!(!output.success(), "{program:?} {args:?} did not fail: {output:?}");
        format!("{}{}", output.text(), output.stderr)
    }

    /// How many calls the proxy has refused.
    fn refusals(&mut self) -> usize {
        let log = std::fs::read_to_string(self.billing.proxy().log()).unwrap();
        log.lines().filter(|line| line.contains("\"decision\"") && line.contains("\"code\"")).count()
    }

    #[track_caller]
    fn shows(&self, program: Program<'_>, args: &[&str], expected: &str) {
        let read = self.reads(program, args);
        assert!(
            read.contains(expected),
            "{program:?} {args:?}: expected\n  {expected}\nbut its user reads\n{read}"
        );
    }
}

#[test]
fn boto3_and_the_aws_cli_show_an_error_in_the_form_of_each_service() {
    let scene = scene();
    for expected in [&DENIED, &UNAVAILABLE] {
        let url = format!("https://{}", expected.host);
        let shows = |program: Program<'_>, args: &[&str], operation: &str| {
            let read = scene.reads(program, args);
            let occurred =
                format!("An error occurred ({}) when calling the {operation} operation", expected.code);
            assert!(read.contains(&occurred), "{args:?}: {read}");
            // Between them it says how often it has asked, if it was told how often to.
            assert!(read.contains(&format!(": {}", expected.line)), "{args:?}: {read}");
        };
        // Query, EC2's own, S3's, JSON 1.0 and 1.1, REST-JSON, CBOR, and XML that is not S3's.
        let calls = [
            ("sts", "get_caller_identity", "GetCallerIdentity", "{}"),
            ("ec2", "describe_regions", "DescribeRegions", "{}"),
            ("s3", "list_objects_v2", "ListObjectsV2", r#"{"Bucket": "invoices"}"#),
            ("dynamodb", "list_tables", "ListTables", "{}"),
            ("sqs", "list_queues", "ListQueues", "{}"),
            ("kms", "list_keys", "ListKeys", "{}"),
            ("lambda", "list_functions", "ListFunctions", "{}"),
            ("cloudwatch", "list_metrics", "ListMetrics", "{}"),
            ("cloudfront", "list_distributions", "ListDistributions", "{}"),
        ];
        if scene.clients.has("boto3") {
            // The forms differ by service, not by status.
            let calls = if expected.code == DENIED.code { &calls[..] } else { &calls[..4] };
            for (service, method, operation, parameters) in calls {
                let args = ["boto3", *service, *method, &url, *parameters];
                shows(Program::Python("refused.py"), &args, operation);
            }
        }
        if scene.clients.has("awscli") {
            let cli = |args: &[&str], operation: &str| {
                shows(Program::Module("awscli"), &[args, &["--endpoint-url", &url]].concat(), operation);
            };
            cli(&["sts", "get-caller-identity"], "GetCallerIdentity");
            cli(&["s3", "ls"], "ListBuckets");
            cli(&["secretsmanager", "get-secret-value", "--secret-id", "a"], "GetSecretValue");
        }
    }
}

#[test]
fn kubectl_shows_a_status() {
    let scene = scene();
    if !scene.clients.has("kubectl") {
        return;
    }
    for expected in [&DENIED, &UNAVAILABLE] {
        let server = format!("https://{}", expected.host);
        let [discovery, resource] = expected.kubernetes;
        let shows = |call: &[&str], words: &str| {
            let args = [call, &["--server", &server, "--token", "placeholder"]].concat();
            let said = format!("Error from server ({words}{}", expected.line);
            scene.shows(Program::Installed("kubectl"), &args, &said);
        };
        // Discovery comes first, and its failure is what the user reads, unless it is an old kubectl that hides it.
        if scene.clients.is_at_least("kubectl", 1, 26) {
            shows(&["get", "pods"], discovery);
        }
        shows(&["get", "--raw=/apis/apps/v1/deployments"], resource);
    }
}

#[test]
fn git_shows_what_the_remote_says() {
    let scene = scene();
    if !scene.clients.has("git") {
        return;
    }
    for expected in [&DENIED, &UNAVAILABLE] {
        let url = format!("https://{}/acme/billing.git", expected.host);
        let read = scene.reads(Program::Installed("git"), &["clone", &url, "/tmp/clone"]);
        let (title, detail) = expected.line.split_once(": ").unwrap();
        let detail = detail.split_once(". ").map_or(detail, |(detail, _)| detail);
        assert!(read.contains(&format!("remote: {title}")), "{read}");
        assert!(read.contains(&format!("remote: {detail}")), "{read}");
        assert!(read.contains("not by the server; decision "), "{read}");
    }
}

#[test]
fn grpc_clients_show_a_status_with_its_message() {
    let mut scene = scene();
    let (before, mut calls) = (scene.refusals(), 0);
    for expected in [&DENIED, &UNAVAILABLE] {
        let host = format!("{}:443", expected.host);
        let [grpcio, grpc_js, grpc_go] = expected.grpc;
        if scene.clients.has("grpcio") {
            let read = scene.reads(Program::Python("grpc_client.py"), &[&host, "unary"]);
            assert!(read.contains(&format!("status = {grpcio}")), "{read}");
            assert!(read.contains(&format!("details = \"{}", expected.line)), "{read}");
        }
        if scene.clients.has("grpc-js") {
            let said = format!("{grpc_js}{}", expected.line);
            scene.shows(Program::Node("grpc_client.mjs"), &[&host, "unary"], &said);
        }
        if scene.clients.has("grpc-go") {
            scene.shows(Program::Go, &["unary", &host], &format!("{grpc_go}{}", expected.line));
        }
        let known = ["grpcio", "grpc-js", "grpc-go"];
        calls += known.into_iter().filter(|name| scene.clients.has(name)).count();
    }
    assert_eq!(scene.refusals() - before, calls, "none asks again by itself");
}

#[test]
fn whoever_shows_one_line_shows_the_code_and_the_reason() {
    let scene = scene();
    for expected in [&DENIED, &UNAVAILABLE] {
        let url = format!("https://{}/v1/things", expected.host);
        let (status, phrase) = expected.reason.split_once(' ').unwrap();
        let kind = if status == "403" { "Client" } else { "Server" };
        let python = Program::Python("refused.py");
        if scene.clients.has("requests") {
            let said =
                format!("requests.exceptions.HTTPError: {status} {kind} Error: {phrase} for url: {url}");
            scene.shows(python, &["requests", &url], &said);
        }
        if scene.clients.has("httpx") {
            let said = format!("httpx.HTTPStatusError: {kind} error '{}' for url '{url}'", expected.reason);
            scene.shows(python, &["httpx", &url], &said);
        }
        if scene.clients.has("aiohttp") {
            let said = format!("aiohttp.client_exceptions.ClientResponseError: {status}, message={phrase:?}");
            let said = if phrase.contains('\'') { said } else { said.replace('"', "'") };
            scene.shows(python, &["aiohttp", &url], &said);
        }
        if scene.clients.has("npm") {
            let registry = format!("https://{}/", expected.host);
            let said = format!("{} - GET {registry}left-pad - {}", expected.reason, expected.line);
            scene.shows(Program::Installed("npm"), &["view", "left-pad", "--registry", &registry], &said);
        }
        // These show the whole body.
        let said = format!("\"error\": \"{}", expected.line);
        if scene.clients.has("go") {
            scene.shows(Program::Go, &["get", &url], &said);
        }
        if scene.clients.has("java") {
            scene.shows(Program::Java("HttpClients.java"), &["get", &url], &said);
        }
        if scene.clients.has("curl") {
            let answer = scene.billing.curl(&url).send().unwrap();
            assert!(answer.text().contains(&said), "{answer:?}");
        }
    }
}
