//! Settings of the proxy, each declared once: flag, environment variable and configuration key have one name.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use service::telemetry::Format;

use crate::capture::rules::Other;

/// The data plane: catches a workload's outbound calls, proves what it is, and puts in a credential made for the call.
///
/// Examples:
///   countersign-proxy capture install --proxy-uid 14014
///   countersign-proxy serve --control https://control:8440 --control-ca ca.pem --evidence-token /var/run/token
#[derive(Debug, Parser)]
#[command(name = "countersign-proxy", version, verbatim_doc_comment, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once, at start")]
pub enum Command {
    /// Carry the workload's calls.
    Serve(Settings),
    /// Install, show or remove the redirect.
    #[command(subcommand)]
    Capture(Capture),
    /// Wait until the proxy beside this command is ready; for start-up probes.
    Ready {
        /// Address of the proxy's health and metrics.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15020")]
        health: SocketAddr,
        /// How long to wait.
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Wait until the application has no connection any more; for pre-stop hooks.
    Quiet {
        /// Address of the proxy's health and metrics.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15020")]
        health: SocketAddr,
        /// How long there must be none.
        #[arg(long, value_name = "SECONDS", default_value_t = 2)]
        quiet: u64,
        /// How long to wait at most.
        #[arg(long, value_name = "SECONDS", default_value_t = 20)]
        deadline: u64,
    },
    /// Print the table of settings as Markdown.
    #[command(hide = true)]
    Reference,
}

/// Settings of `serve`.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Configuration file (YAML); its keys are the names of these flags.
    #[arg(long, env = "COUNTERSIGN_PROXY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The instance's directory: its CA, the channel's key, the last policy. Must be readable by this UID alone; in a
    /// pod, a memory-backed volume that no other container mounts.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_STATE",
        value_name = "DIR",
        default_value = "/run/countersign/proxy"
    )]
    pub state: PathBuf,

    /// Directory of the audit spool, on disk.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_SPOOL",
        value_name = "DIR",
        default_value = "/var/lib/countersign/spool"
    )]
    pub spool: PathBuf,

    /// Most that the audit spool may hold, in MiB.
    #[arg(long, env = "COUNTERSIGN_PROXY_SPOOL_MAX_MIB", value_name = "MIB", default_value_t = 64)]
    pub spool_max_mib: u64,

    /// What to do with a call that needs a credential while the audit spool is full.
    #[arg(long, env = "COUNTERSIGN_PROXY_AUDIT_ON_FULL", value_enum, default_value_t = OnFull::Refuse)]
    pub audit_on_full: OnFull,

    /// URL of the control plane.
    #[arg(long, env = "COUNTERSIGN_PROXY_CONTROL", value_name = "URL")]
    pub control: String,

    /// The control plane's root certificate (PEM).
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_CONTROL_CA",
        value_name = "FILE",
        required_unless_present = "control_fingerprint"
    )]
    pub control_ca: Option<PathBuf>,

    /// Fingerprint of the control plane's root key, instead of its certificate: sha256:HEX.
    #[arg(long, env = "COUNTERSIGN_PROXY_CONTROL_FINGERPRINT", value_name = "sha256:HEX")]
    pub control_fingerprint: Option<String>,

    /// File with the token that proves the workload; read anew for each attestation.
    #[arg(long, env = "COUNTERSIGN_PROXY_EVIDENCE_TOKEN", value_name = "FILE")]
    pub evidence_token: PathBuf,

    /// What kind of evidence the token is.
    #[arg(long, env = "COUNTERSIGN_PROXY_EVIDENCE_KIND", value_enum, default_value_t = EvidenceKind::Kubernetes)]
    pub evidence_kind: EvidenceKind,

    /// Port to which the redirect sends, on 127.0.0.1 and ::1.
    #[arg(long, env = "COUNTERSIGN_PROXY_LISTEN_PORT", value_name = "PORT", default_value_t = 15001)]
    pub listen_port: u16,

    /// Whether connections come by a redirect. If so the proxy is not ready while that is gone.
    #[arg(long, env = "COUNTERSIGN_PROXY_REDIRECT", value_enum, default_value_t = Redirected::Expected)]
    pub redirect: Redirected,

    /// Port of the explicit proxy on 127.0.0.1 and ::1, for applications that are told of it (`HTTPS_PROXY`); off if not
    /// given.
    #[arg(long, env = "COUNTERSIGN_PROXY_EXPLICIT_PORT", value_name = "PORT")]
    pub explicit_port: Option<u16>,

    /// File with the token that the explicit proxy asks for: the password of `Proxy-Authorization: Basic`, with any user
    /// name. Without it every process that reaches the port may use it.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_EXPLICIT_TOKEN_FILE",
        value_name = "FILE",
        requires = "explicit_port"
    )]
    pub explicit_token_file: Option<PathBuf>,

    /// Mark on the proxy's own sockets (SO_MARK), where it may set one; else its UID exempts it from the redirect.
    #[arg(long, env = "COUNTERSIGN_PROXY_MARK", value_name = "N")]
    pub mark: Option<u32>,

    /// Networks to which covered calls and the explicit proxy do not go, beside loopback, link-local and metadata, unless
    /// the destination lists the address.
    #[arg(long, env = "COUNTERSIGN_PROXY_REFUSE_CIDR", value_name = "CIDR", value_delimiter = ',')]
    pub refuse_cidr: Vec<ipnet::IpNet>,

    /// Corporate proxy through which upstreams are reached, by CONNECT: http://HOST:PORT. The control plane is not.
    #[arg(long, env = "COUNTERSIGN_PROXY_UPSTREAM_PROXY", value_name = "URL")]
    pub upstream_proxy: Option<String>,

    /// File with the corporate proxy's credential: user:password.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_UPSTREAM_PROXY_CREDENTIAL_FILE",
        value_name = "FILE",
        requires = "upstream_proxy"
    )]
    pub upstream_proxy_credential_file: Option<PathBuf>,

    /// What is reached without the corporate proxy: names, .suffixes, addresses, networks.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_UPSTREAM_PROXY_EXCEPT",
        value_name = "HOST-OR-CIDR",
        value_delimiter = ',',
        requires = "upstream_proxy"
    )]
    pub upstream_proxy_except: Vec<String>,

    /// Where to write the trust bundle for the application (PEM).
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_BUNDLE",
        value_name = "FILE",
        default_value = service::trust::BUNDLE
    )]
    pub bundle: PathBuf,

    /// Where to write the same as PKCS#12, for Java; beside --bundle, ending in .p12, if absent.
    #[arg(long, env = "COUNTERSIGN_PROXY_BUNDLE_P12", value_name = "FILE")]
    pub bundle_p12: Option<PathBuf>,

    /// Password of that. No secret: Java takes no trust store without one.
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_BUNDLE_P12_PASSWORD",
        value_name = "TEXT",
        default_value = service::trust::BUNDLE_PASSWORD
    )]
    pub bundle_p12_password: String,

    /// More roots (PEM) for upstreams, beside the system's: a file, or a directory of .crt and .pem files, which may be
    /// empty.
    #[arg(long, env = "COUNTERSIGN_PROXY_ROOTS", value_name = "PATH")]
    pub roots: Option<PathBuf>,

    /// Address of health and metrics: /livez, /readyz, /metrics.
    #[arg(long, env = "COUNTERSIGN_PROXY_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:15020")]
    pub health: SocketAddr,

    /// Port on 127.0.0.1 and ::1 at which runtimes are asked whether they trust the proxy (`countersign doctor`); 0 for
    /// none.
    #[arg(long, env = "COUNTERSIGN_PROXY_TRUST_PORT", value_name = "PORT", default_value_t = 15021)]
    pub trust_port: u16,

    /// Threads that carry calls, each with a runtime of its own; 0 for one for each core that the proxy may use.
    #[arg(long, env = "COUNTERSIGN_PROXY_WORKERS", value_name = "N", default_value_t = 0)]
    pub workers: usize,

    /// Connections at a time, on each worker.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Streams at a time on one HTTP/2 connection of the application.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_STREAMS", value_name = "N", default_value_t = 200)]
    pub max_streams: u32,

    /// Requests at a time, on each worker.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_REQUESTS", value_name = "N", default_value_t = 10_000)]
    pub max_requests: usize,

    /// Largest body of a request, in MiB; 0 for no bound. Bodies are streamed, so a bound is for upstreams' sake.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_BODY_MIB", value_name = "MIB", default_value_t = 0)]
    pub max_body_mib: u64,

    /// Largest head of a request, in KiB.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_HEADER_KIB", value_name = "KIB", default_value_t = 64)]
    pub max_header_kib: usize,

    /// Most fields of a request's head.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_HEADERS", value_name = "N", default_value_t = 100)]
    pub max_headers: usize,

    /// Streams of one HTTP/2 connection that the application may give up within ten seconds; more end the connection.
    #[arg(long, env = "COUNTERSIGN_PROXY_MAX_RESETS", value_name = "N", default_value_t = 1000)]
    pub max_resets: u32,

    /// Most memory for connections and open calls, in MiB; above it nothing new is taken (CS3005).
    #[arg(
        long,
        env = "COUNTERSIGN_PROXY_MAX_MEMORY_MIB",
        value_name = "MIB",
        default_value_t = 256,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(8..=1 << 20)
    )]
    pub max_memory_mib: usize,

    /// Seconds for connecting to an upstream, and for its handshake.
    #[arg(long, env = "COUNTERSIGN_PROXY_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10)]
    pub connect_timeout: u64,

    /// Seconds for the head of an upstream's answer.
    #[arg(long, env = "COUNTERSIGN_PROXY_ANSWER_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    pub answer_timeout: u64,

    /// Seconds for the head of a request.
    #[arg(long, env = "COUNTERSIGN_PROXY_HEADER_TIMEOUT", value_name = "SECONDS", default_value_t = 30)]
    pub header_timeout: u64,

    /// Seconds that a connection of the application may be without an open request.
    #[arg(long, env = "COUNTERSIGN_PROXY_IDLE_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    pub idle_timeout: u64,

    /// Seconds in which something of a body must move, of the request's or of the answer's; 0 for no bound.
    #[arg(long, env = "COUNTERSIGN_PROXY_BODY_TIMEOUT", value_name = "SECONDS", default_value_t = 300)]
    pub body_timeout: u64,

    /// The same for event streams, gRPC and WebSockets, which may be silent for long; 0 for no bound.
    #[arg(long, env = "COUNTERSIGN_PROXY_STREAM_TIMEOUT", value_name = "SECONDS", default_value_t = 3600)]
    pub stream_timeout: u64,

    /// Seconds that open calls get when the proxy is told to stop.
    #[arg(long, env = "COUNTERSIGN_PROXY_DRAIN", value_name = "SECONDS", default_value_t = 30)]
    pub drain: u64,

    /// Seconds without a connection after which the application counts as gone then; 0 where the proxy is told to stop
    /// only when it has, as a native sidecar is.
    #[arg(long, env = "COUNTERSIGN_PROXY_DRAIN_QUIET", value_name = "SECONDS", default_value_t = 1)]
    pub drain_quiet: u64,

    /// What is logged: a level, or directives such as `info,proxy::session=debug`.
    #[arg(long, env = "COUNTERSIGN_PROXY_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How it is logged.
    #[arg(long, env = "COUNTERSIGN_PROXY_LOG_FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,
}

/// What happens when an event can't be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFull {
    /// The call is refused with CS9001.
    Refuse,
    /// The call goes on; the gap is itself a numbered event.
    Drop,
}

/// How connections come to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Redirected {
    /// By the rules that `capture install` makes; their absence is an error.
    Expected,
    /// There are none: applications name the proxy themselves.
    None,
}

/// The kinds of evidence that a proxy can gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvidenceKind {
    /// A projected service-account token.
    Kubernetes,
    /// An OIDC token of a CI job or another issuer.
    Oidc,
}

impl EvidenceKind {
    /// As it goes over the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Oidc => "oidc",
        }
    }
}

/// What can be done with the redirect.
#[derive(Debug, Subcommand)]
pub enum Capture {
    /// Install the rules, in place of older ones, in one step.
    Install(Redirect),
    /// Remove the rules.
    Remove,
    /// Print the rules that are installed.
    Show,
    /// Print the rules that `install` would install.
    Print(Redirect),
}

/// What is redirected, and what not.
#[derive(Clone, Debug, Args)]
pub struct Redirect {
    /// Port of the proxy.
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub proxy_port: u16,

    /// UID of the proxy: its own connections are not redirected.
    #[arg(long, value_name = "UID", required_unless_present = "proxy_mark")]
    pub proxy_uid: Option<u32>,

    /// Mark of the proxy's sockets, where it may set one: they are not redirected.
    #[arg(long, value_name = "N")]
    pub proxy_mark: Option<u32>,

    /// Networks that are not captured.
    #[arg(long, value_name = "CIDR")]
    pub exclude_cidr: Vec<ipnet::IpNet>,

    /// Networks that are captured, instead of all.
    #[arg(long, value_name = "CIDR")]
    pub include_cidr: Vec<ipnet::IpNet>,

    /// Ports that are not captured, of TCP and UDP.
    #[arg(long, value_name = "PORT")]
    pub exclude_port: Vec<u16>,

    /// TCP ports that are captured, instead of all.
    #[arg(long, value_name = "PORT")]
    pub include_port: Vec<u16>,

    /// UIDs whose connections are not captured.
    #[arg(long, value_name = "UID")]
    pub exclude_uid: Vec<u32>,

    /// UIDs whose connections are captured, instead of all.
    #[arg(long, value_name = "UID")]
    pub include_uid: Vec<u32>,

    /// What happens to what is not TCP. UDP port 443 (QUIC) is rejected either way, so that clients fall back to TCP.
    #[arg(long, value_enum, default_value_t = Other::Pass)]
    pub other: Other,

    /// Resolver to which DNS goes although the rest is rejected; those of /etc/resolv.conf unless given.
    #[arg(long, value_name = "ADDR")]
    pub resolver: Vec<IpAddr>,

    /// Reject calls to the clouds' metadata services.
    #[arg(long)]
    pub reject_metadata: bool,
}

impl Settings {
    /// Where the bundle for Java goes.
    #[must_use]
    pub fn bundle_for_java(&self) -> PathBuf {
        self.bundle_p12.clone().unwrap_or_else(|| self.bundle.with_extension("p12"))
    }

    /// Time for the head of a request.
    #[must_use]
    pub const fn head_patience(&self) -> Duration {
        Duration::from_secs(self.header_timeout)
    }
}
