//! Between HTTP and an admission review: who asks something else than an API server does is told so, and learns nothing.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, post};
use base64::Engine as _;
use kube::core::DynamicObject;
use kube::core::admission::{
    AdmissionRequest, AdmissionResponse, AdmissionReview, META_API_VERSION_V1, META_KIND,
};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Largest review. An API server takes requests of up to 3 MiB, and the review of an update holds two objects.
pub const REVIEW_MAX: usize = 7 << 20;

/// For the body of a review; webhooks are given 30 s at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reviews at a time, which bounds the memory that they take.
const REVIEWS_MAX: usize = 32;

/// A route that answers reviews by `handler`.
pub fn route<F, Fut>(handler: F) -> MethodRouter
where
    F: Fn(AdmissionRequest<DynamicObject>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = AdmissionResponse> + Send,
{
    let places = Arc::new(Semaphore::new(REVIEWS_MAX));
    post(move |request: Request<Body>| {
        let (handler, places) = (handler.clone(), places.clone());
        async move {
            let Ok(_place) = places.acquire().await else {
                return refuse(StatusCode::SERVICE_UNAVAILABLE, "stopping");
            };
            match read(request).await {
                Ok(review) => answer(handler(review).await),
                Err((status, what)) => refuse(status, what),
            }
        }
    })
}

type Refusal = (StatusCode, &'static str);

/// The fixed texts say what is wrong with a request and nothing of what is in it, or here.
async fn read(request: Request<Body>) -> Result<AdmissionRequest<DynamicObject>, Refusal> {
    let (parts, body) = request.into_parts();
    if !is_json(&parts.headers) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content type must be application/json"));
    }
    let body = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, REVIEW_MAX))
        .await
        .map_err(|_| (StatusCode::REQUEST_TIMEOUT, "the review took too long to arrive"))?
        .map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, "the review is too large, or its end is missing"))?;
    let review: AdmissionReview<DynamicObject> = serde_json::from_slice(&body).map_err(|error| {
        tracing::debug!(%error, "a request is no review");
        (StatusCode::BAD_REQUEST, "the body is not an AdmissionReview as JSON")
    })?;
    if review.types.kind != META_KIND || review.types.api_version != META_API_VERSION_V1 {
        return Err((StatusCode::BAD_REQUEST, "only AdmissionReview of admission.k8s.io/v1 is served"));
    }
    let request: AdmissionRequest<DynamicObject> =
        review.try_into().map_err(|_| (StatusCode::BAD_REQUEST, "the review holds no request"))?;
    match request.uid.is_empty() {
        true => Err((StatusCode::BAD_REQUEST, "the request of the review has no uid")),
        false => Ok(request),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

fn refuse(status: StatusCode, what: &'static str) -> Response {
    tracing::debug!(%status, what, "a request is no review of an API server");
    (status, format!("{what}\n")).into_response()
}

fn answer(response: AdmissionResponse) -> Response {
    match render(response) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer can't be written");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the answer can't be written")
        }
    }
}

/// The answer as the API server reads it: its patch is base64, where the library writes a list of numbers.
///
/// # Errors
/// If it can't be written as JSON.
pub fn render(mut response: AdmissionResponse) -> serde_json::Result<Vec<u8>> {
    let patch = response.patch.as_mut().map(std::mem::take);
    let mut review = serde_json::to_value(response.into_review())?;
    if let Some(patch) = patch {
        let encoded = base64::engine::general_purpose::STANDARD.encode(patch);
        review["response"]["patch"] = Value::String(encoded);
    }
    serde_json::to_vec(&review)
}
