//! A certificate that the webhook issues for itself: kept in a Secret, so that all replicas have the same CA, and made
//! known to the API server through the `caBundle` of its webhook configurations.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::certificate::Shown;
use super::own_ca::OwnCa;

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How often a Secret is read again that another replica was quicker to write.
const RACES_MAX: usize = 5;

/// Where it is kept, and who is to know it.
#[derive(Clone)]
pub struct Issued {
    secrets: Api<Secret>,
    secret: String,
    mutating: Api<MutatingWebhookConfiguration>,
    validating: Api<ValidatingWebhookConfiguration>,
    configuration: String,
    names: Vec<String>,
}

impl Issued {
    /// Names the parts: the Secret in its namespace, both webhook configurations, and what the certificate is for.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        secret: &str,
        configuration: &str,
        names: Vec<String>,
    ) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            secret: secret.to_owned(),
            mutating: Api::all(client.clone()),
            validating: Api::all(client),
            configuration: configuration.to_owned(),
            names,
        }
    }

    /// Brings everything up to date: first the Secret, then the bundles, then what is shown. A leaf is never shown
    /// before the API server has been told of its CA.
    ///
    /// # Errors
    /// If the API server can't be asked, or the Secret holds something else. What was shown stays.
    pub async fn look(&self, shown: &Shown) -> anyhow::Result<()> {
        let held = self.held().await.with_context(|| format!("the Secret {}", self.secret))?;
        self.publish(&held.bundle()).await?;
        if shown.replace(held.certified()?) {
            tracing::info!(secret = self.secret, "the certificate of the Secret is shown from now on");
        }
        Ok(())
    }

    /// Looks again for as long as the program runs.
    pub async fn keep_current(self, shown: Arc<Shown>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = self.look(&shown).await {
                tracing::error!("the webhook's certificate stays as it was: {error:#}");
            }
        }
    }

    /// What the Secret holds, made or renewed if that is due. Replicas race for it: who comes second reads what the
    /// first has written.
    async fn held(&self) -> anyhow::Result<OwnCa> {
        for _ in 0..RACES_MAX {
            let now = crate::now();
            let (written, ours) = match self.secrets.get_opt(&self.secret).await? {
                None => {
                    let ours = OwnCa::first(&self.names, now)?;
                    let secret = self.filled(ObjectMeta::default(), &ours);
                    (self.secrets.create(&PostParams::default(), &secret).await, ours)
                }
                Some(there) => {
                    let data = there.data.clone().unwrap_or_default();
                    let held = OwnCa::from_data(&data).context("delete it to have a new one made")?;
                    let Some(ours) = held.advance(&self.names, now)? else { return Ok(held) };
                    // With the version that was read: the API server refuses if there is a newer one.
                    let secret = self.filled(there.metadata, &ours);
                    (self.secrets.replace(&self.secret, &PostParams::default(), &secret).await, ours)
                }
            };
            match written {
                Ok(_) => {
                    tracing::info!(secret = self.secret, "the webhook's certificate was renewed");
                    return Ok(ours);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("other replicas are always quicker to write it")
    }

    fn filled(&self, metadata: ObjectMeta, held: &OwnCa) -> Secret {
        Secret {
            metadata: ObjectMeta { name: Some(self.secret.clone()), ..metadata },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(held.to_data()),
            ..Secret::default()
        }
    }

    /// Has the API server verify by this bundle. A configuration that is not there yet is found at a later look.
    async fn publish(&self, bundle: &str) -> anyhow::Result<()> {
        let name = &self.configuration;
        bring(&self.mutating, name, bundle, "pods", |found| {
            let hooks = found.webhooks.iter().flatten();
            hooks.map(|hook| (&*hook.name, &hook.client_config.ca_bundle)).collect()
        })
        .await?;
        bring(&self.validating, name, bundle, "resources", |found| {
            let hooks = found.webhooks.iter().flatten();
            hooks.map(|hook| (&*hook.name, &hook.client_config.ca_bundle)).collect()
        })
        .await
    }
}

/// A configuration's webhooks: their names, and the bundles by which they are verified.
type Hooks<K> = fn(&K) -> Vec<(&str, &Option<ByteString>)>;

/// Brings the bundle into a configuration, if there is one.
async fn bring<K>(
    api: &Api<K>,
    name: &str,
    bundle: &str,
    what_for: &str,
    hooks: Hooks<K>,
) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let Some(found) = api.get_opt(name).await.with_context(|| K::kind(&()).into_owned())? else {
        return Ok(());
    };
    let encoded = base64::engine::general_purpose::STANDARD.encode(bundle);
    if let Some(patch) = patch(hooks(&found).into_iter(), bundle, &encoded) {
        api.patch(name, &Default::default(), &patch).await.context("caBundle")?;
        tracing::info!(configuration = found.name_any(), "caBundle is current, for {what_for}");
    }
    Ok(())
}

/// What brings the bundle into those webhooks that have another one; each is named, so that nothing is written into
/// the place of one that has moved.
fn patch<'a>(
    hooks: impl Iterator<Item = (&'a str, &'a Option<ByteString>)>,
    bundle: &str,
    encoded: &str,
) -> Option<Patch<Value>> {
    let stale = hooks
        .enumerate()
        .filter(|(_, (_, there))| there.as_ref().is_none_or(|there| there.0 != bundle.as_bytes()));
    let operations: Vec<Value> = stale
        .flat_map(|(index, (name, _))| {
            [
                json!({ "op": "test", "path": format!("/webhooks/{index}/name"), "value": name }),
                json!({ "op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": encoded }),
            ]
        })
        .collect();
    let operations = serde_json::from_value(Value::Array(operations)).ok()?;
    let json_patch::Patch(operations) = operations;
    (!operations.is_empty()).then_some(Patch::Json(json_patch::Patch(operations)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn only_what_is_stale_is_patched_and_by_its_name() {
        let hooks = BTreeMap::from([
            ("a", Some(ByteString(b"new".to_vec()))),
            ("b", Some(ByteString(b"old".to_vec()))),
            ("c", None),
        ]);
        let Some(Patch::Json(patch)) = patch(hooks.iter().map(|(name, there)| (*name, there)), "new", "bmV3")
        else {
            panic!("b and c are stale");
        };
        let mut configuration = json!({ "webhooks": [
            { "name": "a", "clientConfig": { "caBundle": "bmV3" } },
            { "name": "b", "clientConfig": { "caBundle": "b2xk" } },
            { "name": "c", "clientConfig": {} },
        ] });
        json_patch::patch(&mut configuration, &patch).unwrap();
        for hook in configuration["webhooks"].as_array().unwrap() {
            assert_eq!(hook["clientConfig"]["caBundle"], "bmV3");
        }
        let current = [("a", Some(ByteString(b"new".to_vec())))];
        assert!(super::patch(current.iter().map(|(name, there)| (*name, there)), "new", "bmV3").is_none());
    }
}
