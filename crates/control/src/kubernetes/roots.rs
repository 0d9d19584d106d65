//! The control plane's roots as a ConfigMap: the control plane writes it, and the webhook tells the pods that it injects
//! by which root key they know their control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;

use crate::authority::{self, Authority};

/// The ConfigMap's key.
const KEY: &str = "ca.crt";

/// Whose fields of the ConfigMap these are (server-side apply).
const MANAGER: &str = "countersign-control";

/// How often it is written although nothing has changed: somebody may have.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Writes the roots, what signs first, into a ConfigMap of the namespace that the program runs in, for as long as it
/// runs.
pub async fn keep_published(client: Client, name: String, authority: Arc<Authority>) {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let mut changes = authority.changes();
    loop {
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(KEY.to_owned(), authority.now().roots_pem())])),
            ..ConfigMap::default()
        };
        let applied = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await;
        let wait = match applied {
            Ok(_) => WRITE_EVERY,
            Err(error) => {
                tracing::error!(name, %error, "the ConfigMap of the roots can't be written");
                AGAIN
            }
        };
        let _ = tokio::time::timeout(wait, changes.changed()).await;
    }
}

/// Follows the ConfigMap, and says by which fingerprint the control plane is known.
///
/// # Errors
/// If the watch has ended before there was one, which it does not by itself.
pub async fn fingerprint(
    client: Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<watch::Receiver<String>> {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let (sender, mut receiver) = watch::channel(String::new());
    let name = name.to_owned();
    tokio::spawn(async move {
        let stream = watcher(api, config).default_backoff().applied_objects();
        tokio::pin!(stream);
        while let Some(found) = stream.next().await {
            match found.map_err(Into::into).and_then(|map| of_map(&map)) {
                Ok(fingerprint) => {
                    let is_other = |known: &mut String| {
                        let other = *known != fingerprint;
                        known.clone_from(&fingerprint);
                        other
                    };
                    if sender.send_if_modified(is_other) {
                        tracing::info!(fingerprint, "the control plane's root key, as pods are told it");
                    }
                }
                Err(error) => tracing::warn!(name, "the control plane's roots stay as they were: {error:#}"),
            }
        }
    });
    receiver
        .wait_for(|fingerprint| !fingerprint.is_empty())
        .await
        .context("the ConfigMap can't be watched")?;
    Ok(receiver)
}

/// The fingerprint of the root that signs, which comes first.
fn of_map(map: &ConfigMap) -> anyhow::Result<String> {
    let pem =
        map.data.as_ref().and_then(|data| data.get(KEY)).with_context(|| format!("{KEY} is missing"))?;
    let root = CertificateDer::from_pem_slice(pem.as_bytes()).context("it holds no certificate")?;
    authority::fingerprint(&root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_root_counts_and_what_is_none_is_told() {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let mut map = ConfigMap::default();
        assert!(of_map(&map).unwrap_err().to_string().contains("ca.crt"));
        map.data = Some(BTreeMap::from([(KEY.to_owned(), root.pem())]));
        assert_eq!(of_map(&map).unwrap(), authority::fingerprint(root.der()).unwrap());
        assert!(of_map(&map).unwrap().starts_with("sha256:"));
        map.data = Some(BTreeMap::from([(KEY.to_owned(), "nothing".to_owned())]));
        assert!(of_map(&map).is_err());
    }
}
