//! How each runtime is made to call a URL, and how it is known from what it says whether it read an answer.

/// One runtime.
#[derive(Debug)]
pub struct Probe {
    /// Its name, as [`service::trust`] has it.
    pub runtime: &'static str,
    /// Programs that must be on the path; the first is run.
    pub programs: &'static [&'static str],
    /// Its arguments; see [`super::run::Target::fill`].
    pub args: &'static [&'static str],
    /// Variables that keep it from asking anything else than the one question.
    pub env: &'static [(&'static str, &'static str)],
    /// By what it shows that it has read an answer.
    pub answered: Answered,
    /// How its version is asked for.
    pub version: &'static [&'static str],
    /// What to do about it where no variable helps.
    pub otherwise: &'static str,
}

/// By what a runtime shows that it has read an answer, whatever the answer was.
#[derive(Debug)]
pub enum Answered {
    /// It ends with one of these codes.
    Exit(&'static [i32]),
    /// It ends well, or says one of these.
    Says(&'static [&'static str]),
}

/// The exit code by which a script of ours says that a package is not installed.
pub const NOT_INSTALLED: i32 = 64;

/// What runtimes say when they do not trust a certificate, in lower case.
pub const DISTRUST: &[&str] = &[
    "certificate verify failed",
    "certificate_verify_failed",
    "unable to get local issuer",
    "unable_to_get_issuer_cert",
    "unable_to_verify_leaf",
    "self-signed certificate",
    "self signed certificate",
    "self_signed_cert",
    "signed by unknown authority",
    "pkix path building failed",
    "trustanchors parameter must be non-empty",
    "server certificate verification failed",
    "ssl certificate problem",
    "ssl validation failed",
    "problem confirming the ssl certificate",
    "is not trusted",
    "verify error:",
    "[60]",
    "[77]",
    "error setting certificate",
];

const SSL: &str = "
import sys, urllib.request, urllib.error
try: urllib.request.urlopen(sys.argv[1], timeout=10).read()
except urllib.error.HTTPError: pass
";

const REQUESTS: &str = "
import sys
try: import requests
except ImportError: sys.exit(64)
requests.get(sys.argv[1], timeout=10)
";

const BOTO3: &str = "
import sys
try:
    import boto3, botocore
    from botocore.config import Config
except ImportError: sys.exit(64)
once = Config(retries={'total_max_attempts': 1}, connect_timeout=10, read_timeout=10)
sts = boto3.client('sts', region_name='eu-west-1', endpoint_url=sys.argv[1], config=once,
                   aws_access_key_id='none', aws_secret_access_key='none')
try: sts.get_caller_identity()
except (botocore.exceptions.ClientError, botocore.parsers.ResponseParserError): pass
";

const NODE: &str = "
fetch(process.argv[1]).then((answer) => answer.text()).catch((error) => {
  console.error(String(error), String(error.cause?.code), String(error.cause));
  process.exit(1);
});
";

/// All of them, in the order in which they are asked.
pub const PROBES: &[Probe] = &[
    Probe {
        runtime: "curl",
        programs: &["curl"],
        args: &["-sS", "--max-time", "10", "-o", "/dev/null", "{url}"],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["--version"],
        otherwise: "",
    },
    Probe {
        runtime: "wget",
        programs: &["wget"],
        args: &["-nv", "-O", "/dev/null", "--tries=1", "--timeout=10", "{url}"],
        env: &[],
        // 8: the server answered with an error.
        answered: Answered::Exit(&[0, 8]),
        version: &["--version"],
        otherwise: "it reads no variable; write `ca_certificate = {bundle}` to ~/.wgetrc, or add the bundle to the system's store",
    },
    Probe {
        runtime: "openssl",
        programs: &["openssl"],
        args: &[
            "s_client",
            "-brief",
            "-verify_return_error",
            "-connect",
            "{authority}",
            "-servername",
            "{host}",
        ],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["version"],
        otherwise: "",
    },
    Probe {
        runtime: "python ssl",
        programs: &["python3"],
        args: &["-c", SSL, "{url}"],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["--version"],
        otherwise: "",
    },
    Probe {
        runtime: "python requests",
        programs: &["python3"],
        args: &["-c", REQUESTS, "{url}"],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["-c", "import requests; print(requests.__version__)"],
        otherwise: "",
    },
    Probe {
        runtime: "python boto3",
        programs: &["python3"],
        args: &["-c", BOTO3, "{url}"],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["-c", "import boto3; print(boto3.__version__)"],
        otherwise: "",
    },
    Probe {
        runtime: "pip",
        programs: &["pip"],
        args: &[
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--retries",
            "0",
            "--timeout",
            "10",
            "--dest",
            "{directory}",
            "--index-url",
            "{base}",
            "countersign-doctor",
        ],
        env: &[],
        answered: Answered::Says(&["no matching distribution found"]),
        version: &["--version"],
        otherwise: "",
    },
    Probe {
        runtime: "node",
        programs: &["node"],
        args: &["-e", NODE, "{url}"],
        env: &[],
        answered: Answered::Exit(&[0]),
        version: &["--version"],
        otherwise: "",
    },
    Probe {
        runtime: "java",
        // Part of every Java runtime, and a JVM like any other: it needs no compiler to make a call.
        programs: &["keytool", "java"],
        args: &["-printcrl", "-file", "{url}"],
        env: &[],
        answered: Answered::Says(&[
            "no crl data found",
            "crlexception",
            "server returned http response code",
            "empty input",
            "filenotfoundexception",
        ]),
        version: &[],
        otherwise: "",
    },
    Probe {
        runtime: "go",
        programs: &["go"],
        args: &["mod", "download", "-json", "countersign.invalid/doctor@v0.0.0"],
        env: &[
            ("GOPROXY", "{base}"),
            ("GONOSUMDB", "*"),
            ("GOFLAGS", "-mod=mod"),
            ("GOTOOLCHAIN", "local"),
            ("GOMODCACHE", "{directory}"),
            ("GOWORK", "off"),
        ],
        answered: Answered::Says(&[
            "invalid response from proxy",
            "proxy returned",
            "invalid character",
            "reading http",
            "not found",
            "forbidden",
            "bad request",
        ]),
        version: &["version"],
        otherwise: "",
    },
    Probe {
        runtime: "git",
        programs: &["git"],
        args: &["ls-remote", "{url}"],
        env: &[("GIT_TERMINAL_PROMPT", "0")],
        answered: Answered::Says(&[
            "is this a git repository",
            "requested url returned error",
            "not found",
            "remote:",
            "authentication failed",
            "could not read username",
        ]),
        version: &["--version"],
        otherwise: "",
    },
    Probe {
        runtime: "cargo",
        programs: &["cargo"],
        args: &["search", "--index", "sparse+{base}", "--limit", "1", "countersign-doctor"],
        env: &[("CARGO_HOME", "{directory}"), ("CARGO_NET_RETRY", "0")],
        answered: Answered::Says(&[
            "expected value",
            "expected ident",
            "invalid type",
            "missing field",
            "got 4",
            "got 5",
            "failed to parse",
        ]),
        version: &["--version"],
        otherwise: "",
    },
];
