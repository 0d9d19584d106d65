//! The variables by which runtimes find the trust bundle, and an explicit proxy.

use super::names;

/// The variables of the trust bundle. A value that the pod sets itself is never replaced.
#[must_use]
pub fn variables() -> Vec<(String, String)> {
    let bundle = format!("{}/ca-bundle.pem", names::TRUST_PATH);
    let java = format!(
        "-Djavax.net.ssl.trustStore={}/ca-bundle.p12 -Djavax.net.ssl.trustStorePassword=changeit",
        names::TRUST_PATH
    );
    let pem = [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "REQUESTS_CA_BUNDLE",
        "AWS_CA_BUNDLE",
        "NODE_EXTRA_CA_CERTS",
        "GIT_SSL_CAINFO",
        "PIP_CERT",
        "CARGO_HTTP_CAINFO",
    ];
    let mut variables: Vec<_> = pem.map(|name| (name.to_owned(), bundle.clone())).into();
    variables.push(("JAVA_TOOL_OPTIONS".to_owned(), java));
    variables
}

/// The variables of an explicit proxy, in both spellings that are in use; Node reads them only if it is told to.
#[must_use]
pub fn proxy_variables(port: u16) -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{port}");
    let mut variables = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
        variables.push((name.to_owned(), proxy.clone()));
        variables.push((name.to_ascii_lowercase(), proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        variables.push((name.to_owned(), "127.0.0.1,localhost,::1".to_owned()));
    }
    variables.push(("NODE_USE_ENV_PROXY".to_owned(), "1".to_owned()));
    variables
}
