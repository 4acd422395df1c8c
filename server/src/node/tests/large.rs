//! Records of the largest size, many at once.

use super::*;
use domicile_proto::limits::{PEER_MESSAGE_BYTES_MAX, VALUE_BYTES_MAX};
use v1::session_result::Result as Answer;

fn key(number: usize) -> String {
    format!("large/{number}")
}

async fn put_large(running: &Running, tag: &str, count: usize) {
    let mut session = running.session().await;
    for number in 0..count {
        let value = Bytes::from(vec![number as u8; VALUE_BYTES_MAX]);
        session.send(tag, vec![put(&key(number), value)]);
    }
    for result in session.results(count).await {
        assert!(matches!(result.result, Some(Answer::Put(_))), "{result:?}");
    }
}

/// Gets in one frame; all of them are answered with their own values.
async fn get_large(running: &Running, tag: &str, count: usize, level: v1::Level) {
    let mut session = running.session().await;
    let gets = (0..count).map(|number| get(&key(number), level)).collect();
    session.send(tag, gets);
    let mut seen = vec![false; count];
    for result in session.results(count).await {
        let Some(Answer::Get(v1::GetResponse {
            record: Some(record),
            ..
        })) = result.result
        else {
            panic!("{:?}", result.result);
        };
        let number = result.id as usize - 1;
        assert_eq!(record.value.len(), VALUE_BYTES_MAX);
        assert_eq!(record.value[0], number as u8);
        seen[number] = true;
    }
    assert!(seen.into_iter().all(|seen| seen));
}

/// They are more than one message to a client takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_are_read_over_one_session() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    put_large(&nodes[0], "shared", 16).await;
    for level in [v1::Level::Strong, v1::Level::Local, v1::Level::Bounded] {
        get_large(&nodes[0], "shared", 16, level).await;
    }
}

/// They are more than one message between nodes takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_are_read_through_another_region() {
    let count = PEER_MESSAGE_BYTES_MAX / VALUE_BYTES_MAX + 8;
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    put_large(&nodes[0], "shared", count).await;
    get_large(&nodes[1], "shared", count, v1::Level::Strong).await;
}
