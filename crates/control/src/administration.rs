//! What administrators do: apply, get, delete, explain, revoke, audit. Each change is recorded with its author.

use std::sync::Arc;
use std::time::Duration;

use model::audit::{Event, What};
use model::slice::{BYPASS_MAX_MILLIS, Block, BlockTarget, Bypass};
use model::{Code, DecisionId, Failure, GrantId, ResourceRef, UnixMillis, Version};
use resources::kind::Kind;
use resources::{Diagnostic, Document, Parsed, Set, parse};
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use wire::v1;
use wire::v1::administration_server::Administration;

use crate::door::{Author, Door, Role};
use crate::index::{self, Index};
use crate::keys::Keys;
use crate::proxies::{Proxies, ProxyState};
use crate::store::{DocumentChange, Owner, Store, StoredDocument};
use crate::{audit, explain, now, proposal, store_failure};

/// Attested callers that are looked at for an answer.
const CALLERS_MAX: u32 = 10_000;

/// How often a change is validated again because somebody else changed something meanwhile.
const ATTEMPTS: usize = 5;

/// Longest wait for proxies to confirm.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Records read in one go.
const PAGE: u32 = 500;

/// The control plane as administrators see it.
#[derive(Clone)]
pub struct Admin {
    /// Who is let in.
    pub door: Arc<Door>,
    /// What lasts.
    pub store: Arc<dyn Store>,
    /// Policy in force.
    pub index: Arc<Index>,
    /// Who is connected.
    pub proxies: Proxies,
    /// For verification.
    pub keys: Keys,
}

type Result<T> = std::result::Result<T, Status>;

fn refuse(failure: Failure) -> Status {
    wire::status::from_failure(&failure)
}

fn failed(error: crate::store::StoreError) -> Status {
    tracing::error!(%error, "the store failed");
    refuse(store_failure(error))
}

/// Who only asks what would change changes nothing.
const fn may_change(dry_run: bool) -> Role {
    if dry_run { Role::Viewer } else { Role::Administrator }
}

fn not_found(what: impl std::fmt::Display) -> Status {
    refuse(Failure::new(Code::NotFound, format!("there is no {what}")))
}

/// A set of documents as it would be, and what is wrong with it.
struct Proposal {
    base: Version,
    changes: Vec<(DocumentChange, v1::Change)>,
    diagnostics: Vec<Diagnostic>,
}

impl Proposal {
    fn is_good(&self) -> bool {
        !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

impl Admin {
    async fn author<T>(&self, request: &Request<T>, needs: Role) -> Result<Author> {
        self.door.author(request, needs).await.map_err(refuse)
    }

    async fn stored(&self) -> Result<(Version, Set, Vec<StoredDocument>)> {
        let state = self.store.state().await.map_err(failed)?;
        let mut set = Set::default();
        for stored in &state.documents {
            if let Ok(document) = Document::from_json(&stored.json) {
                set.insert(document);
            }
        }
        Ok((state.version, set, state.documents))
    }

    async fn propose_apply(&self, request: &v1::ApplyRequest) -> Result<Proposal> {
        let files: Vec<(String, String)> =
            request.files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        let default = Some(request.default_namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let Parsed { documents, mut diagnostics, broken } = parse(&files, default);
        let (base, before, stored) = self.stored().await?;
        let mut changes = Vec::new();
        for document in &documents {
            let json = document.to_json().to_string();
            let before =
                stored.iter().find(|stored| stored.kind == document.kind() && stored.name == document.name);
            let verb = match before {
                None => "created",
                Some(before) if same(&before.json, &json) => "unchanged",
                Some(_) => "configured",
            };
            if verb != "unchanged" {
                diagnostics.extend(read_only(document, &stored, "edit"));
            }
            let (kind, name) = (document.kind(), document.name.clone());
            let change = change_of(kind, &name, verb);
            changes.push((DocumentChange::Put { kind, name, json, owner: Owner::Applied }, change));
        }
        let (_, found) = proposal::put(&documents, broken, &before);
        diagnostics.extend(found);
        // As they stand in the files; what concerns none of them comes last.
        let at = |diagnostic: &Diagnostic| {
            let file = request.files.iter().position(|file| file.name == diagnostic.at.file);
            (file.unwrap_or(usize::MAX), diagnostic.at.line, diagnostic.at.column)
        };
        diagnostics.sort_by_key(at);
        Ok(Proposal { base, changes, diagnostics })
    }

    async fn propose_delete(&self, references: &[(Kind, ResourceRef)]) -> Result<Proposal> {
        let (base, set, stored) = self.stored().await?;
        let mut removed = Vec::new();
        for (kind, name) in references {
            let document = set.get(*kind, name).cloned();
            removed.push(document.ok_or_else(|| not_found(format!("{}/{name}", kind.lower())))?);
        }
        let mut diagnostics: Vec<Diagnostic> =
            removed.iter().filter_map(|document| read_only(document, &stored, "delete")).collect();
        diagnostics.extend(proposal::delete(&removed, &set, self.index.now().egress()));
        let changes = references.iter().map(|(kind, name)| {
            (DocumentChange::Delete { kind: *kind, name: name.clone() }, change_of(*kind, name, "deleted"))
        });
        Ok(Proposal { base, changes: changes.collect(), diagnostics })
    }

    /// Makes the changes of a proposal, if nothing has moved since it was validated; `None` if something has.
    async fn commit(&self, proposal: &Proposal, author: &Author) -> Result<Option<Version>> {
        let changes: Vec<DocumentChange> = proposal
            .changes
            .iter()
            .filter(|(_, change)| change.verb != "unchanged")
            .map(|(change, _)| change.clone())
            .collect();
        if changes.is_empty() {
            return Ok(Some(proposal.base));
        }
        let version =
            self.store.change_documents(proposal.base, &changes, &author.0, now()).await.map_err(failed)?;
        if let Some(version) = version {
            self.in_force(version).await;
        }
        Ok(version)
    }

    /// Waits until a change is in force here, so that what follows the answer meets it.
    async fn in_force(&self, version: Version) {
        let reached = index::reached(&self.index, version);
        if tokio::time::timeout(Duration::from_secs(5), reached).await.is_err() {
            tracing::warn!(%version, "a change is slow to come into force");
        }
    }

    async fn confirmed(&self, version: Version, wait_ms: u32) -> (u32, u32) {
        let patience = Duration::from_millis(u64::from(wait_ms)).min(WAIT_MAX);
        self.proxies.wait(patience, |_| true, |state: &ProxyState| state.confirmed >= version).await
    }

    async fn revoke_grant(
        &self,
        id: &str,
        request: &v1::RevokeRequest,
        author: &Author,
    ) -> Result<v1::RevokeResponse> {
        let grant = GrantId(id.into());
        let before = self.store.live_grants(None, now()).await.map_err(failed)?;
        let live = before.iter().find(|live| live.id == grant);
        let already = live.and_then(|live| live.revoked_at);
        if request.dry_run {
            let live = live.ok_or_else(|| not_found(format!("grant {id}")))?;
            let verb = if already.is_some() { "unchanged" } else { "revoked" };
            let concerns = |state: &ProxyState| state.caller == live.caller;
            return Ok(self.foreseen(verb, concerns, live.expires_at.0, already.map_or(0, |at| at.0)));
        }
        let revoked = self.store.revoke_grant(&grant, now()).await.map_err(failed)?;
        let revoked = revoked.ok_or_else(|| not_found(format!("grant {id}")))?;
        let version = self.store.version().await.map_err(failed)?;
        if already.is_none() {
            let event = model::audit::Administration {
                author: author.0.clone(),
                verb: "revoked".to_owned(),
                object: format!("grant/{id}"),
                version,
                reason: String::new(),
            };
            self.store.append_events(&[What::Administration(event)], now()).await.map_err(failed)?;
        }
        let serial = self.proxies.revoke(revoked.caller.clone(), grant);
        let patience = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let concerns = |state: &ProxyState| state.caller == revoked.caller;
        let (proxies, confirmed) =
            self.proxies.wait(patience, concerns, |state| state.revocations >= serial).await;
        Ok(v1::RevokeResponse {
            verb: if already.is_some() { "unchanged" } else { "revoked" }.to_owned(),
            block_id: String::new(),
            version: Some(version.into()),
            proxies,
            confirmed,
            last_expiry_ms: if revoked.expires_at > now() { revoked.expires_at.0 } else { 0 },
            since_ms: already.map_or(0, |at| at.0),
        })
    }

    /// What a revocation would do.
    fn foreseen(
        &self,
        verb: &str,
        concerns: impl Fn(&ProxyState) -> bool,
        last_expiry_ms: i64,
        since_ms: i64,
    ) -> v1::RevokeResponse {
        let proxies = self.proxies.all().iter().filter(|state| concerns(state)).count();
        v1::RevokeResponse {
            verb: verb.to_owned(),
            version: Some(self.index.now().version.into()),
            proxies: u32::try_from(proxies).unwrap_or(u32::MAX),
            last_expiry_ms,
            since_ms,
            ..v1::RevokeResponse::default()
        }
    }

    async fn foresee_block(&self, target: &BlockTarget, lift: bool) -> Result<v1::RevokeResponse> {
        let state = self.store.state().await.map_err(failed)?;
        let standing = state.blocks.iter().find(|stored| stored.block.target == *target);
        let since = standing.map_or(0, |stored| stored.since.0);
        Ok(match (lift, standing) {
            (true, None) => self.foreseen("unchanged", |_| true, 0, 0),
            (true, Some(_)) => self.foreseen("lifted", |_| true, 0, 0),
            (false, Some(_)) => self.foreseen("unchanged", |_| true, self.last_expiry(target).await?, since),
            (false, None) => self.foreseen("blocked", |_| true, self.last_expiry(target).await?, 0),
        })
    }

    async fn block(
        &self,
        target: BlockTarget,
        request: &v1::RevokeRequest,
        author: &Author,
    ) -> Result<v1::RevokeResponse> {
        if request.dry_run {
            return self.foresee_block(&target, request.lift).await;
        }
        let (verb, block, since, version) = if request.lift {
            match self.store.lift(&target, &author.0, now()).await.map_err(failed)? {
                Some((stored, version)) => ("lifted", stored.block.id, stored.since, version),
                None => {
                    ("unchanged", String::new(), UnixMillis(0), self.store.version().await.map_err(failed)?)
                }
            }
        } else {
            let id = format!("{:08x}", rand::random::<u32>());
            let block = Block { id, target: target.clone(), reason: request.reason.clone() };
            let (stored, fresh, version) =
                self.store.block(&block, &author.0, now()).await.map_err(failed)?;
            (if fresh { "blocked" } else { "unchanged" }, stored.block.id, stored.since, version)
        };
        self.in_force(version).await;
        let (proxies, confirmed) = self.confirmed(version, request.wait_ms).await;
        Ok(v1::RevokeResponse {
            verb: verb.to_owned(),
            block_id: block,
            version: Some(version.into()),
            proxies,
            confirmed,
            last_expiry_ms: if request.lift { 0 } else { self.last_expiry(&target).await? },
            since_ms: since.0,
        })
    }

    /// Until when a credential that was already sent stays good.
    async fn last_expiry(&self, target: &BlockTarget) -> Result<i64> {
        let policies = self.index.now();
        let bindings = self.store.bindings(now(), CALLERS_MAX).await.map_err(failed)?;
        let grants = self.store.live_grants(None, now()).await.map_err(failed)?;
        let concerned = |grant: &&crate::store::StoredGrant| match target {
            BlockTarget::Everything => true,
            BlockTarget::Destination(name) => grant.destination == *name,
            BlockTarget::Provider(name) => grant.provider == *name,
            BlockTarget::Workload(name) => bindings.iter().any(|binding| {
                binding.caller.id == grant.caller && policies.workloads_of(&binding.caller).contains(name)
            }),
        };
        Ok(grants.iter().filter(concerned).map(|grant| grant.expires_at.0).max().unwrap_or_default())
    }

    async fn recorded(&self, decision: &str) -> Result<v1::ExplainResponse> {
        let last = decision == "last";
        let wanted: Option<DecisionId> = decision.parse().ok();
        if !last && wanted.is_none() {
            return Err(not_found(format!("decision `{decision}`")));
        }
        let mut found: Vec<Event> = Vec::new();
        let mut cursor = 0;
        loop {
            let page = self.store.records_after(cursor, PAGE).await.map_err(failed)?;
            let Some((end, _, _)) = page.last() else { break };
            cursor = *end;
            for (_, _, record) in &page {
                let Ok(event) = serde_json::from_slice::<Event>(&record.payload) else { continue };
                match decision_of(&event.what) {
                    Some((id, begins)) if last => {
                        if begins {
                            found.clear();
                        }
                        let known =
                            |event: &Event| decision_of(&event.what).is_some_and(|(known, _)| known == id);
                        if begins || found.iter().any(known) {
                            found.push(event);
                        }
                    }
                    Some((id, _)) if Some(id) == wanted => found.push(event),
                    _ => {}
                }
            }
        }
        explain::recorded(&found).ok_or_else(|| not_found(format!("recorded decision `{decision}`")))
    }

    async fn items(&self, request: &v1::GetRequest) -> Result<Vec<v1::Item>> {
        let mut items = self.all_items(&request.kind).await?;
        items.retain(|item| item.reference.as_ref().is_some_and(|reference| matches(request, reference)));
        Ok(items)
    }

    async fn all_items(&self, kind: &str) -> Result<Vec<v1::Item>> {
        match kind {
            "blocks" => {
                let state = self.store.state().await.map_err(failed)?;
                Ok(state.blocks.iter().map(block_item).collect())
            }
            "bypasses" => {
                let state = self.store.state().await.map_err(failed)?;
                let in_force = state.bypasses.iter().filter(|stored| stored.bypass.until > now());
                Ok(in_force.map(bypass_item).collect())
            }
            "grants" => {
                let grants = self.store.live_grants(None, now()).await.map_err(failed)?;
                Ok(grants.iter().map(grant_item).collect())
            }
            "callers" => {
                let bindings = self.store.bindings(now(), CALLERS_MAX).await.map_err(failed)?;
                let policies = self.index.now();
                Ok(bindings
                    .iter()
                    .map(|binding| caller_item(binding, &policies.workloads_of(&binding.caller)))
                    .collect())
            }
            kind => {
                let kind = Kind::parse(kind).ok_or_else(|| {
                    let detail = format!(
                        "`{kind}` is not a kind; there are the seven of documents, blocks, bypasses, grants, callers"
                    );
                    refuse(Failure::new(Code::InvalidValue, detail))
                })?;
                let (_, _, stored) = self.stored().await?;
                Ok(stored.iter().filter(|stored| stored.kind == kind).map(document_item).collect())
            }
        }
    }
}

/// What is synchronised from a custom resource is changed there.
fn read_only(document: &Document, stored: &[StoredDocument], verb: &str) -> Option<Diagnostic> {
    let (kind, name) = (document.kind(), &document.name);
    let is_it = |stored: &&StoredDocument| stored.kind == kind && stored.name == *name;
    let Owner::CustomResource { .. } = stored.iter().find(is_it)?.owner else { return None };
    let namespace = name.namespace.as_ref().map(|namespace| format!(" -n {namespace}")).unwrap_or_default();
    let message = format!("{} is synchronised from a custom resource", document.label());
    let resource = format!("{}.{}", kind.plural(), resources::crd::GROUP);
    Some(
        Diagnostic::error(Code::ReadOnlyDocument, document.at("/metadata/name"), message)
            .help(format!("`kubectl{namespace} {verb} {resource} {}`", name.name)),
    )
}

/// What belongs to no namespace is found from every one.
fn matches(request: &v1::GetRequest, item: &v1::Reference) -> bool {
    let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    (item.namespace.is_empty() || fits(&request.namespace, &item.namespace))
        && fits(&request.name, &item.name)
}

/// The decision that an event is about, and whether it begins it.
fn decision_of(what: &What) -> Option<(DecisionId, bool)> {
    match what {
        What::Intent(intent) => Some((intent.decision, true)),
        What::Refusal(refusal) => Some((refusal.decision, true)),
        What::Passed(passed) => Some((passed.decision, true)),
        What::Outcome(outcome) => Some((outcome.decision, false)),
        What::StandingCredential(standing) => Some((standing.decision, false)),
        _ => None,
    }
}

/// Whether two documents say the same.
fn same(a: &str, b: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    read(a) == read(b)
}

fn reference(kind: &str, name: &ResourceRef) -> v1::Reference {
    v1::Reference {
        kind: kind.to_owned(),
        namespace: name.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
        name: name.name.to_string(),
    }
}

fn change_of(kind: Kind, name: &ResourceRef, verb: &str) -> v1::Change {
    v1::Change { reference: Some(reference(kind.as_str(), name)), verb: verb.to_owned() }
}

fn document_item(stored: &StoredDocument) -> v1::Item {
    v1::Item {
        reference: Some(reference(stored.kind.as_str(), &stored.name)),
        json: stored.json.clone(),
        revision: stored.revision,
        created_at_ms: stored.created_at.0,
        changed_at_ms: stored.changed_at.0,
        author: stored.author.clone(),
    }
}

fn state_item(reference: v1::Reference, json: &Value, since: UnixMillis, author: &str) -> v1::Item {
    v1::Item {
        reference: Some(reference),
        json: json.to_string(),
        revision: 0,
        created_at_ms: since.0,
        changed_at_ms: since.0,
        author: author.to_owned(),
    }
}

fn block_item(stored: &crate::store::StoredBlock) -> v1::Item {
    let block = v1::Block::from(&stored.block);
    let target =
        if block.name.is_empty() { block.kind.clone() } else { format!("{}/{}", block.kind, block.name) };
    let json = json!({ "id": block.id, "target": target, "reason": block.reason });
    // By what is blocked: so it is lifted.
    let reference = match &stored.block.target {
        BlockTarget::Everything => v1::Reference { kind: block.kind, ..v1::Reference::default() },
        BlockTarget::Workload(name) | BlockTarget::Destination(name) | BlockTarget::Provider(name) => {
            reference(&block.kind, name)
        }
    };
    state_item(reference, &json, stored.since, &stored.author)
}

fn bypass_item(stored: &crate::store::StoredBypass) -> v1::Item {
    let bypass = &stored.bypass;
    let json = json!({
        "id": bypass.id, "target": format!("workload/{}", bypass.workload), "reason": bypass.reason,
        "until": bypass.until.to_string(),
    });
    // By the workload: so it is lifted.
    state_item(reference("workload", &bypass.workload), &json, stored.since, &stored.author)
}

fn grant_item(grant: &crate::store::StoredGrant) -> v1::Item {
    let json = json!({
        "id": grant.id, "caller": grant.caller, "instance": grant.instance, "destination": grant.destination,
        "provider": grant.provider, "expiresAt": grant.expires_at.to_string(),
        "revokedAt": grant.revoked_at.map(|at| at.to_string()),
    });
    let reference =
        v1::Reference { kind: "grant".to_owned(), namespace: String::new(), name: grant.id.0.to_string() };
    state_item(reference, &json, grant.issued_at, grant.caller.path())
}

fn caller_item(binding: &crate::store::Binding, workloads: &[ResourceRef]) -> v1::Item {
    let caller = &binding.caller;
    let json = json!({
        "id": caller.id, "instance": binding.instance, "namespace": caller.namespace, "workloads": workloads,
        "attributes": caller.attributes, "provider": caller.attestation.provider, "kind": caller.attestation.kind,
        "evidenceIssuedAt": caller.attestation.issued_at.to_string(),
    });
    let reference = v1::Reference {
        kind: "caller".to_owned(),
        namespace: caller.namespace.to_string(),
        name: caller.id.path().to_owned(),
    };
    state_item(reference, &json, caller.attestation.issued_at, &caller.attestation.provider)
}

fn diagnostic_message(diagnostic: &Diagnostic) -> v1::Diagnostic {
    v1::Diagnostic {
        code: diagnostic.code.to_string(),
        severity: diagnostic.severity.as_str().to_owned(),
        message: diagnostic.message.clone(),
        file: diagnostic.at.file.clone(),
        line: diagnostic.at.line,
        column: diagnostic.at.column,
        length: diagnostic.at.length,
        help: diagnostic.help.clone(),
    }
}

fn references_of(request: &v1::DeleteRequest) -> Result<Vec<(Kind, ResourceRef)>> {
    let invalid = |what: String| refuse(Failure::new(Code::InvalidValue, what));
    let read = |reference: &v1::Reference| {
        let kind = Kind::parse(&reference.kind)
            .ok_or_else(|| invalid(format!("`{}` is not a kind", reference.kind)))?;
        let namespace = match reference.namespace.as_str() {
            namespace if kind.is_namespaced() && !namespace.is_empty() => {
                Some(model::Namespace::new(namespace).map_err(|e| invalid(e.to_string()))?)
            }
            _ => None,
        };
        let name = ResourceRef::new(namespace, &reference.name).map_err(|e| invalid(e.to_string()))?;
        Ok((kind, name))
    };
    request.references.iter().map(read).collect()
}

fn bypass_target(request: &v1::BypassRequest) -> Result<ResourceRef> {
    let references = request.workload.iter().cloned().collect();
    let named = references_of(&v1::DeleteRequest { references, dry_run: false })?.pop();
    match named {
        Some((Kind::Workload, name)) => Ok(name),
        _ => Err(refuse(Failure::new(Code::InvalidValue, "only a workload can be bypassed"))),
    }
}

/// A bypass is for a while that is said when it begins, and for a reason.
fn new_bypass(workload: ResourceRef, request: &v1::BypassRequest, now: UnixMillis) -> Result<Bypass> {
    let invalid = |what: &str| refuse(Failure::new(Code::InvalidValue, what));
    if !(1..=BYPASS_MAX_MILLIS).contains(&request.for_ms) {
        return Err(invalid("a bypass is for 1 s at least and 24 h at most"));
    }
    if request.reason.trim().is_empty() {
        return Err(invalid("a bypass needs a reason: audit and status show it"));
    }
    Ok(Bypass {
        id: format!("{:08x}", rand::random::<u32>()),
        workload,
        until: UnixMillis(now.0 + request.for_ms),
        reason: request.reason.clone(),
    })
}

fn block_target(reference: &v1::Reference) -> Result<BlockTarget> {
    let request = v1::DeleteRequest { references: vec![reference.clone()], dry_run: false };
    match references_of(&request)?.pop() {
        Some((Kind::Workload, name)) => Ok(BlockTarget::Workload(name)),
        Some((Kind::Destination, name)) => Ok(BlockTarget::Destination(name)),
        Some((Kind::CredentialProvider, name)) => Ok(BlockTarget::Provider(name)),
        _ => Err(refuse(Failure::new(
            Code::InvalidValue,
            "a workload, a destination, a credentialprovider or everything can be blocked",
        ))),
    }
}

#[tonic::async_trait]
impl Administration for Admin {
    type AuditStream = ReceiverStream<Result<v1::AuditResponse>>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>> {
        let author = self.author(&request, may_change(request.get_ref().dry_run)).await?;
        let request = request.into_inner();
        for _ in 0..ATTEMPTS {
            let proposal = self.propose_apply(&request).await?;
            let diagnostics: Vec<v1::Diagnostic> =
                proposal.diagnostics.iter().map(diagnostic_message).collect();
            if !proposal.is_good() {
                let version = Some(proposal.base.into());
                return Ok(Response::new(v1::ApplyResponse { changes: Vec::new(), diagnostics, version }));
            }
            let version =
                if request.dry_run { Some(proposal.base) } else { self.commit(&proposal, &author).await? };
            if let Some(version) = version {
                let changes = proposal.changes.into_iter().map(|(_, change)| change).collect();
                return Ok(Response::new(v1::ApplyResponse {
                    changes,
                    diagnostics,
                    version: Some(version.into()),
                }));
            }
        }
        Err(Status::aborted("others keep changing documents; try again"))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>> {
        self.author(&request, Role::Viewer).await?;
        let items = self.items(&request.into_inner()).await?;
        Ok(Response::new(v1::GetResponse { items }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>> {
        let author = self.author(&request, may_change(request.get_ref().dry_run)).await?;
        let request = request.into_inner();
        let references = references_of(&request)?;
        for _ in 0..ATTEMPTS {
            let proposal = self.propose_delete(&references).await?;
            let diagnostics: Vec<v1::Diagnostic> =
                proposal.diagnostics.iter().map(diagnostic_message).collect();
            if !proposal.is_good() {
                let version = Some(proposal.base.into());
                return Ok(Response::new(v1::DeleteResponse { changes: Vec::new(), diagnostics, version }));
            }
            let version =
                if request.dry_run { Some(proposal.base) } else { self.commit(&proposal, &author).await? };
            if let Some(version) = version {
                let changes = proposal.changes.into_iter().map(|(_, change)| change).collect();
                return Ok(Response::new(v1::DeleteResponse {
                    changes,
                    diagnostics,
                    version: Some(version.into()),
                }));
            }
        }
        Err(Status::aborted("others keep changing documents; try again"))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>> {
        self.author(&request, Role::Viewer).await?;
        let response = match request.into_inner().question {
            Some(v1::explain_request::Question::Call(call)) => {
                let bindings = self.store.bindings(now(), CALLERS_MAX).await.map_err(failed)?;
                explain::hypothetical(&self.index, &bindings, &call).map_err(refuse)?
            }
            Some(v1::explain_request::Question::Decision(decision)) => self.recorded(&decision).await?,
            None => return Err(Status::invalid_argument("nothing was asked")),
        };
        Ok(Response::new(response))
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>> {
        let author = self.author(&request, may_change(request.get_ref().dry_run)).await?;
        let request = request.into_inner();
        let response = match &request.target {
            Some(v1::revoke_request::Target::Grant(id)) => self.revoke_grant(id, &request, &author).await?,
            Some(v1::revoke_request::Target::Block(reference)) => {
                let target = block_target(reference)?;
                self.must_exist(&target, request.lift).await?;
                self.block(target, &request, &author).await?
            }
            Some(v1::revoke_request::Target::Everything(_)) => {
                self.block(BlockTarget::Everything, &request, &author).await?
            }
            None => return Err(Status::invalid_argument("nothing was named")),
        };
        Ok(Response::new(response))
    }

    async fn bypass(&self, request: Request<v1::BypassRequest>) -> Result<Response<v1::BypassResponse>> {
        let author = self.author(&request, Role::Administrator).await?;
        let request = request.into_inner();
        Ok(Response::new(self.bypassed(&request, &author).await?))
    }

    async fn audit(&self, request: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>> {
        self.author(&request, Role::Viewer).await?;
        let (answers, receiver) = tokio::sync::mpsc::channel(64);
        tokio::spawn(read_audit(self.store.clone(), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn verify(&self, request: Request<v1::VerifyRequest>) -> Result<Response<v1::VerifyResponse>> {
        self.author(&request, Role::Viewer).await?;
        let report = audit::verify(&*self.store, &self.keys).await.map_err(failed)?;
        let whole = report.is_whole();
        let streams = report.streams.into_iter().map(|verdict| v1::StreamVerdict {
            stream: verdict.stream,
            first: u64::from(verdict.last > 0),
            last: verdict.last,
            whole: verdict.broken.is_none(),
            broken_at: verdict.broken.as_ref().map_or(0, |broken| broken.at),
            code: verdict.broken.as_ref().map(|broken| broken.code.to_string()).unwrap_or_default(),
            detail: verdict.broken.map(|broken| broken.detail).unwrap_or_default(),
        });
        Ok(Response::new(v1::VerifyResponse {
            streams: streams.collect(),
            records: report.records,
            checkpoints: report.checkpoints,
            whole,
        }))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>> {
        self.author(&request, Role::Viewer).await?;
        let grants = self.store.live_grants(None, now()).await.map_err(failed)?;
        let proxies = self.proxies.all().into_iter().map(|state| v1::ProxyStatus {
            egress: state.egress.as_str().to_owned(),
            redirect: state.redirect.state.as_str().to_owned(),
            not_carried: state.redirect.shortfall(state.egress).unwrap_or_default().to_owned(),
            left_out: state.redirect.note(state.egress).unwrap_or_default().to_owned(),
            grants: u32::try_from(grants.iter().filter(|grant| grant.instance == state.instance).count())
                .unwrap_or(u32::MAX),
            caller: state.caller.to_string(),
            instance: state.instance.to_string(),
            running: Some(state.running.into()),
            wanted: Some(state.wanted.into()),
            refused: state.refused,
            connected: true,
            last_seen_ms: state.last_seen.0,
            session_ends_ms: state.session_ends.0,
            proxy_version: state.program,
        });
        let state = self.store.state().await.map_err(failed)?;
        let in_force = state.bypasses.iter().filter(|stored| stored.bypass.until > now());
        let bypasses = in_force.map(|stored| v1::Bypass::from(&stored.bypass));
        Ok(Response::new(v1::StatusResponse {
            version: Some(self.index.now().version.into()),
            proxies: proxies.collect(),
            bypasses: bypasses.collect(),
            control_plane_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }
}

impl Admin {
    /// Sets or ends a bypass, and waits for the proxies.
    async fn bypassed(&self, request: &v1::BypassRequest, author: &Author) -> Result<v1::BypassResponse> {
        let workload = bypass_target(request)?;
        let (verb, stored, version) = if request.lift {
            match self.store.lift_bypass(&workload, &author.0, now()).await.map_err(failed)? {
                Some((stored, version)) => ("lifted", Some(stored), version),
                None => ("unchanged", None, self.store.version().await.map_err(failed)?),
            }
        } else {
            self.must_exist(&BlockTarget::Workload(workload.clone()), false).await?;
            let bypass = new_bypass(workload, request, now())?;
            let (stored, version) = self.store.bypass(&bypass, &author.0, now()).await.map_err(failed)?;
            tracing::warn!(
                id = %stored.bypass.id, workload = %stored.bypass.workload, until = %stored.bypass.until,
                author = %author.0, "a workload is bypassed: its connections pass untouched, without a credential"
            );
            ("bypassed", Some(stored), version)
        };
        self.in_force(version).await;
        let (proxies, confirmed) = self.confirmed(version, request.wait_ms).await;
        Ok(v1::BypassResponse {
            verb: verb.to_owned(),
            bypass: stored.map(|stored| v1::Bypass::from(&stored.bypass)),
            proxies,
            confirmed,
        })
    }

    /// A block on what is not there would block nothing, silently. One that is there can always be lifted.
    async fn must_exist(&self, target: &BlockTarget, lift: bool) -> Result<()> {
        let (kind, name) = match target {
            BlockTarget::Workload(name) => (Kind::Workload, name),
            BlockTarget::Destination(name) => (Kind::Destination, name),
            BlockTarget::Provider(name) => (Kind::CredentialProvider, name),
            BlockTarget::Everything => return Ok(()),
        };
        let (_, set, _) = self.stored().await?;
        if lift || set.get(kind, name).is_some() {
            Ok(())
        } else {
            Err(not_found(format!("{}/{name}", kind.lower())))
        }
    }
}

async fn read_audit(
    store: Arc<dyn Store>,
    request: v1::AuditRequest,
    answers: tokio::sync::mpsc::Sender<Result<v1::AuditResponse>>,
) {
    let mut cursor = 0;
    let mut sent = 0;
    loop {
        let page = match store.records_after(cursor, PAGE).await {
            Ok(page) => page,
            Err(error) => return drop(answers.send(Err(failed(error))).await),
        };
        let ended = page.is_empty();
        for (at, stored_at, record) in page {
            cursor = at;
            let event = serde_json::from_slice::<Event>(&record.payload);
            if !event.is_ok_and(|event| wanted(&request, &event)) {
                continue;
            }
            let answer = v1::AuditResponse { record: Some(record.into()), stored_at_ms: stored_at.0 };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            sent += 1;
            if request.limit > 0 && sent >= request.limit {
                return;
            }
        }
        if ended {
            if !request.follow || answers.is_closed() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn wanted(request: &v1::AuditRequest, event: &Event) -> bool {
    if event.time.0 < request.since_ms {
        return false;
    }
    let caller = match &event.what {
        What::Intent(intent) => Some(&intent.caller),
        What::Refusal(refusal) => refusal.caller.as_ref(),
        What::Passed(passed) => Some(&passed.caller),
        What::StandingCredential(standing) => Some(&standing.caller),
        What::Issued(issued) => Some(&issued.caller),
        What::Attested(attested) => attested.caller.as_ref(),
        What::Redirect(seen) => seen.caller.as_ref(),
        // An outcome belongs to its intent, which was looked at before.
        What::Outcome(_) | What::Administration(_) | What::Gap(_) => None,
    };
    let fits =
        |caller: &model::SpiffeId| caller.as_str() == request.caller || caller.path() == request.caller;
    let caller_fits =
        request.caller.is_empty() || caller.map_or(matches!(event.what, What::Outcome(_)), fits);
    let denied = match &event.what {
        What::Refusal(_) => true,
        What::Attested(attested) => attested.refused.is_some(),
        What::Issued(issued) => issued.refused.is_some(),
        What::Redirect(seen) => seen.code.is_some(),
        _ => false,
    };
    caller_fits && (!request.denied_only || denied)
}
