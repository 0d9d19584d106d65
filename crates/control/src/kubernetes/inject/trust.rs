//! The variables by which runtimes find the trust bundle, and an explicit proxy.

use service::trust::{Bundle, VARIABLES};

use super::names;

/// The variables of the trust bundle ([`service::trust`] has the list). A value that the pod sets itself is never
/// replaced.
#[must_use]
pub fn variables() -> Vec<(String, String)> {
    let bundle = Bundle::at(&bundle_path());
    VARIABLES.iter().map(|variable| (variable.name.to_owned(), variable.value(&bundle))).collect()
}

/// Where the bundle is, in every container of the pod.
#[must_use]
pub fn bundle_path() -> String {
    format!("{}/ca-bundle.pem", names::TRUST_PATH)
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
