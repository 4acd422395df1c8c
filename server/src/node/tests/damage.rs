//! Bytes that rot under a node that runs.

use super::*;
use crate::storage::{Durability, Engine, WriteBatch, keys, record};
use v1::session_result::Result as Answer;

/// Whoever decodes a damaged row, the node stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_stops_the_node_that_reads_it() {
    let scan = Operation::Scan(v1::ScanRequest::default());
    for (level, operation) in [
        ("strong", get("user/42", v1::Level::Strong)),
        ("local", get("user/42", v1::Level::Local)),
        ("scan", scan),
    ] {
        let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
        let running = &nodes[0];
        let row = keys::record("eu-only", b"user/42");
        let mut rotten = record::seal_bytes(&row, b"whatever it was").to_vec();
        rotten[7] ^= 1;
        let mut batch = WriteBatch::new();
        batch.put(row, rotten);
        running.disk.state.write(batch, Durability::Synced).unwrap();

        let mut session = running.session().await;
        session.send("eu-only", vec![operation]);
        let results = session.results(1).await;
        let Some(Answer::Failure(failure)) = &results[0].result else {
            panic!("{level}: {results:?}");
        };
        assert_eq!(failure.reason, "CORRUPTION", "{level}");
        let halted = tokio::time::timeout(WAIT, running.node.halted()).await;
        assert!(halted.unwrap().contains("damaged"), "{level}");
    }
}
