//! What becomes of writes that come again with their request id, or with that of
//! another write.

use super::*;
use v1::session_result::Result as Answer;

/// A session that registered a client.
struct Writer {
    session: Session,
    client: Bytes,
}

impl Writer {
    async fn new(node: &Running) -> Writer {
        let mut session = node.session().await;
        let register = Operation::Register(v1::RegisterRequest {});
        session.send("eu-only", vec![register]);
        let answer = session.results(1).await.pop().unwrap().result.unwrap();
        let Answer::Register(registered) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(registered.client.len(), 16);
        Writer {
            session,
            client: registered.client,
        }
    }

    fn id(&self, sequence: u64) -> Option<v1::RequestId> {
        Some(v1::RequestId {
            client: self.client.clone(),
            sequence,
            acked_below: 0,
        })
    }

    /// The version that an operation came to, or the reason why not.
    async fn send(&mut self, operation: Operation) -> Result<u64, String> {
        self.session.send("eu-only", vec![operation]);
        match self.session.results(1).await.pop().unwrap().result.unwrap() {
            Answer::Put(put) => Ok(put.version),
            Answer::Delete(delete) => Ok(delete.version),
            Answer::Failure(failure) => Err(failure.reason),
            other => panic!("{other:?}"),
        }
    }

    async fn read(&mut self, key: &str) -> Option<Bytes> {
        self.session
            .send("eu-only", vec![get(key, v1::Level::Strong)]);
        match self.session.results(1).await.pop().unwrap().result.unwrap() {
            Answer::Get(got) => got.record.map(|record| record.value),
            other => panic!("{other:?}"),
        }
    }
}

fn write(key: &'static str, value: &'static str, id: Option<v1::RequestId>) -> v1::PutRequest {
    v1::PutRequest {
        key: key.into(),
        value: value.into(),
        request_id: id,
        ..v1::PutRequest::default()
    }
}

fn erase(key: &'static str, id: Option<v1::RequestId>) -> Operation {
    Operation::Delete(v1::DeleteRequest {
        key: key.into(),
        request_id: id,
        ..v1::DeleteRequest::default()
    })
}

/// Writes as so many other clients.
async fn others(node: &Running, count: usize) {
    for _ in 0..count {
        let mut other = Writer::new(node).await;
        let id = other.id(1);
        other
            .send(Operation::Put(write("n", "x", id)))
            .await
            .unwrap();
    }
}

/// A retry of a client that has been forgotten is refused: applied, it would
/// undo what was written since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_a_forgotten_client_is_not_applied() {
    let bounded = v1::InitClusterRequest {
        remembered_clients: 3,
        ..v1::InitClusterRequest::default()
    };
    let nodes = cluster_with(TWO_REGIONS, &["eu", "us"], bounded).await;
    let mut writer = Writer::new(&nodes[0]).await;
    let old = || Operation::Put(write("acct", "old", writer.id(1)));
    let (old, again, late) = (old(), old(), old());
    let first = writer.send(old).await.unwrap();
    writer
        .send(Operation::Put(write("acct", "new", None)))
        .await
        .unwrap();
    others(&nodes[0], 2).await;
    assert_eq!(writer.send(again).await, Ok(first), "it is remembered");
    others(&nodes[0], 1).await;
    assert_eq!(writer.send(late).await, Err("REQUEST_FORGOTTEN".into()));
    let gone = erase("acct", writer.id(2));
    assert_eq!(writer.send(gone).await, Err("REQUEST_FORGOTTEN".into()));
    assert_eq!(writer.read("acct").await, Some(Bytes::from_static(b"new")));
}

/// The outcomes of one client are bounded with those of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_bounded_over_all_clients() {
    let bounded = v1::InitClusterRequest {
        remembered_outcomes: 8,
        ..v1::InitClusterRequest::default()
    };
    let nodes = cluster_with(TWO_REGIONS, &["eu", "us"], bounded).await;
    let mut idle = Writer::new(&nodes[0]).await;
    let first = Operation::Put(write("a", "1", idle.id(1)));
    idle.send(first.clone()).await.unwrap();
    let mut busy = Writer::new(&nodes[0]).await;
    for sequence in 1..=6 {
        let put = Operation::Put(write("b", "x", busy.id(sequence)));
        busy.send(put).await.unwrap();
    }
    assert_eq!(idle.send(first).await, Err("REQUEST_FORGOTTEN".into()));
    let last = Operation::Put(write("b", "x", busy.id(6)));
    assert!(
        busy.send(last).await.is_ok(),
        "whoever writes is remembered"
    );
}

/// A used id answers the write that used it, and no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_id_with_another_write_is_refused() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let mut writer = Writer::new(&nodes[0]).await;
    let id = writer.id(1);
    let first = write("a", "one", id.clone());
    let version = writer.send(Operation::Put(first.clone())).await.unwrap();
    let absent = Some(v1::Condition {
        condition: Some(v1::condition::Condition::IfAbsent(true)),
    });
    let others = [
        Operation::Put(write("b", "one", id.clone())),
        Operation::Put(write("a", "two", id.clone())),
        Operation::Put(v1::PutRequest {
            condition: absent,
            ..first.clone()
        }),
        erase("a", id.clone()),
    ];
    for other in others {
        let what = format!("{other:?}");
        let answer = writer.send(other).await;
        assert_eq!(answer, Err("REQUEST_ID_REUSED".into()), "{what}");
    }
    assert_eq!(writer.read("b").await, None);
    assert_eq!(writer.read("a").await, Some(Bytes::from_static(b"one")));
    assert_eq!(writer.send(Operation::Put(first)).await, Ok(version));

    // The same after a delete, and after a condition that did not hold.
    let gone = erase("a", writer.id(2));
    let deleted = writer.send(gone.clone()).await.unwrap();
    let put = Operation::Put(write("a", "back", writer.id(2)));
    assert_eq!(writer.send(put).await, Err("REQUEST_ID_REUSED".into()));
    assert_eq!(writer.send(gone).await, Ok(deleted));
    let conditional = Operation::Put(v1::PutRequest {
        condition: Some(v1::Condition {
            condition: Some(v1::condition::Condition::IfVersion(5)),
        }),
        ..write("a", "back", writer.id(3))
    });
    for _ in 0..2 {
        let answer = writer.send(conditional.clone()).await;
        assert_eq!(answer, Err("CONDITION_FAILED".into()));
    }
    let put = Operation::Put(write("a", "back", writer.id(3)));
    assert_eq!(writer.send(put).await, Err("REQUEST_ID_REUSED".into()));
    assert_eq!(writer.read("a").await, None);
}

/// An id that nobody gave is refused, at whatever node it comes in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_was_not_given_is_refused() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let mut writer = Writer::new(&nodes[0]).await;
    let foreign = v1::RequestId {
        client: Bytes::from_static(&[0xff; 16]),
        sequence: 1,
        acked_below: 0,
    };
    let put = Operation::Put(write("a", "one", Some(foreign)));
    assert_eq!(writer.send(put).await, Err("REQUEST_ID_UNKNOWN".into()));
    assert_eq!(writer.read("a").await, None);

    // A client of another region is registered by the home.
    let mut away = nodes[1].session().await;
    away.send("shared", vec![Operation::Register(v1::RegisterRequest {})]);
    let answer = away.results(1).await.pop().unwrap().result.unwrap();
    let Answer::Register(registered) = answer else {
        panic!("{answer:?}");
    };
    let id = v1::RequestId {
        client: registered.client,
        sequence: 1,
        acked_below: 1,
    };
    for _ in 0..2 {
        let put = write("a", "away", Some(id.clone()));
        away.send("shared", vec![Operation::Put(put)]);
        let answer = away.results(1).await.pop().unwrap().result.unwrap();
        assert!(matches!(answer, Answer::Put(_)), "{answer:?}");
    }
}
