//! What namespaces say by their labels.

use std::collections::BTreeMap;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio_stream::StreamExt as _;

type Labelled = PartialObjectMeta<Namespace>;

/// The labels of all namespaces, kept current by a watch.
#[derive(Clone)]
pub struct Namespaces {
    known: Store<Labelled>,
    api: Api<Labelled>,
}

impl Namespaces {
    /// Begins to watch, for as long as the program runs.
    #[must_use]
    pub fn watch(client: Client) -> Self {
        let api: Api<Labelled> = Api::all(client);
        let (known, writer) = reflector::store();
        let stream = watcher(api.clone(), watcher::Config::default())
            .default_backoff()
            .modify(|namespace| {
                // Of each only its labels are needed.
                namespace.metadata.managed_fields = None;
                namespace.metadata.annotations = None;
            })
            .reflect(writer);
        tokio::spawn(async move {
            tokio::pin!(stream);
            while let Some(event) = stream.next().await {
                if let Err(error) = event {
                    tracing::warn!(%error, "namespaces can't be watched; what was known of them is used");
                }
            }
        });
        Self { known, api }
    }

    /// Waits until all are known.
    ///
    /// # Errors
    /// If the watch has ended, which it does not by itself.
    pub async fn known(&self) -> anyhow::Result<()> {
        self.known.wait_until_ready().await.context("namespaces are not watched any more")
    }

    /// The labels of a namespace. One that the watch has not told of yet is asked for.
    ///
    /// # Errors
    /// If it can't be asked for, or there is none.
    pub async fn labels(&self, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
        if let Some(namespace) = self.known.get(&ObjectRef::new(name)) {
            return Ok(namespace.metadata.labels.clone().unwrap_or_default());
        }
        let namespace = self.api.get_opt(name).await.context("the namespace can't be asked for")?;
        let namespace = namespace.context("there is no such namespace")?;
        Ok(namespace.metadata.labels.unwrap_or_default())
    }
}
