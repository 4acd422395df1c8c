//! What a node counts of its clients.

use super::*;

/// A session counts once, when it ends; its operations count as they end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_and_its_operations_are_counted() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let running = &nodes[0];
    let mut session = running.session().await;
    let gets = (0..3).map(|_| get("user/42", v1::Level::Strong)).collect();
    session.send("eu-only", gets);
    session.results(3).await;
    let counted = |line: &str| running.metrics.encode().lines().any(|l| l == line);
    let operations = "domicile_operations_total{kind=\"get\",outcome=\"OK\"} 3";
    let ended = "domicile_rpc_duration_seconds_count{method=\"Session\",code=\"OK\"} 1";
    let until = |line: &'static str| {
        let counted = &counted;
        tokio::time::timeout(WAIT, async move {
            while !counted(line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    };
    until(operations).await.expect("operations are counted");
    assert!(!counted(ended), "it goes on");
    drop(session);
    until(ended).await.expect("the session is counted");
}
