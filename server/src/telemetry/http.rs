//! Metrics and liveness over HTTP.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

use super::Metrics;

/// The content type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics`, and `/healthz`, which answers `ok` as long as the
/// process runs. That says nothing about leaders or other nodes: a node that
/// waits for them must not be restarted for it. A node whose disk failed ends
/// by itself.
pub fn router(metrics: Metrics) -> Router {
    let encode = move || async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.encode()) };
    Router::new()
        .route("/metrics", get(encode))
        .route("/healthz", get(|| async { "ok\n" }))
}
