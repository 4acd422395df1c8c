//! The library against a server that misbehaves on purpose.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domicile_client::{
    Acknowledge, Client, Error, Level, Outcome, Reason, Token, Transport, Version,
};
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use futures::StreamExt;
use support::{Act, Fake, Running, failure};
use tonic::Code;

const BOTH: [Transport; 2] = [Transport::Session, Transport::Unary];

async fn connect(transport: Transport, nodes: &[&Running]) -> Client {
    Client::builder()
        .endpoints(nodes.iter().map(|node| node.endpoint()))
        .region("eu")
        .transport(transport)
        .timeout(Duration::from_secs(3))
        .connect()
        .await
        .expect("connects")
}

/// The request ids of all writes that the server saw.
fn ids(node: &Running) -> Vec<(bytes::Bytes, u64, u64)> {
    let seen = node.fake.seen.lock();
    let ids = seen.operations.iter().filter_map(|(_, op)| match op {
        Operation::Put(put) => put.request_id.clone(),
        Operation::Delete(delete) => delete.request_id.clone(),
        _ => None,
    });
    ids.map(|id| (id.client, id.sequence, id.acked_below))
        .collect()
}

#[tokio::test]
async fn a_record_is_written_read_and_deleted() {
    for transport in BOTH {
        let node = Fake::new().start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let written = eu.put("user/42", "alice").if_absent().await.expect("put");
        let got = eu.get("user/42").local().await.expect("get");
        assert_eq!(got.value().expect("a record").as_bytes(), b"alice");
        assert_eq!(got.version(), Some(written.version));
        assert_eq!(got.meta.served_by, "eu/1");
        assert_eq!(got.meta.level, Level::Strong);
        assert_eq!(got.meta.lag, Some(Duration::from_millis(7)));
        assert_eq!(got.meta.token, written.token);

        let again = eu.put("user/42", "bob").if_absent().await;
        assert!(matches!(again, Err(Error::ConditionFailed(_))), "{again:?}");
        let wrong = eu.delete("user/42").if_version(Version(99)).await;
        assert_eq!(
            wrong.expect_err("condition").reason(),
            Some(Reason::ConditionFailed)
        );
        let deleted = eu.delete("user/42").if_version(written.version).await;
        assert!(deleted.expect("delete").existed);
        assert_eq!(eu.get("user/42").await.expect("get").record, None);
        // The tag came with every operation.
        let seen = node.fake.seen.lock();
        assert!(seen.operations.iter().all(|(tag, _)| tag == "eu-only"));
    }
}

#[tokio::test]
async fn what_is_asked_for_stands_on_the_wire() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    let bound = Duration::from_millis(5_000);
    let token = eu.put("k", "v").await.expect("put").token;
    eu.get("k").await.expect("get");
    eu.get("k")
        .max_staleness(bound)
        .or_fail()
        .await
        .expect("get");
    eu.get("k").at_least(&token).or_wait().await.expect("get");
    // Who has seen nothing yet.
    let none = Token::default();
    eu.get("k").at_least(&none).await.expect("get");
    let seen = node.fake.seen.lock();
    let options: Vec<_> = seen.operations[1..]
        .iter()
        .map(|(_, op)| match op {
            Operation::Get(get) => get.options.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(options[0], None);
    let bounded = options[1].as_ref().expect("options");
    assert_eq!(bounded.level(), v1::Level::Bounded);
    assert_eq!(bounded.bound_ms, 5_000);
    assert_eq!(bounded.on_unmet(), v1::OnUnmet::Fail);
    let at_least = options[2].as_ref().expect("options");
    assert_eq!(at_least.level(), v1::Level::AtLeast);
    let any = options[3].as_ref().expect("options");
    assert_eq!(any.level(), v1::Level::Local);
    assert_eq!(&at_least.token[..], b"token");
    assert_eq!(at_least.on_unmet(), v1::OnUnmet::Wait);
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_sent_again_with_its_id_and_applied_once() {
    for transport in BOTH {
        let node = Fake::scripted(|number, _| match number {
            0 => Act::ServeAndBreak,
            1 => Act::Break,
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let written = eu.put("k", "v").if_absent().await.expect("put");
        assert_eq!(written.version, Version(1));
        let ids = ids(&node);
        assert_eq!(ids.len(), 3);
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(node.fake.seen.lock().applied, 1);
    }
}

#[tokio::test]
async fn a_write_without_an_id_is_not_sent_again() {
    for transport in BOTH {
        let node = Fake::scripted(|_, _| Act::ServeAndBreak).start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let error = eu.put("k", "v").at_most_once().await.expect_err("lost");
        let Error::OutcomeUnknown { request_id, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*request_id, None);
        assert!(!error.is_retryable());
        assert_eq!(node.fake.seen.lock().operations.len(), 1);
        assert!(ids(&node).is_empty());
    }
}

#[tokio::test]
async fn a_write_without_an_answer_until_the_deadline_is_unknown_and_can_be_asked_for() {
    for transport in BOTH {
        let node = Fake::scripted(|number, operation| match operation {
            Operation::Put(put) if put.key == "k" && number < 4 => Act::ServeAndHush,
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let put = || eu.put("k", "v").if_absent();
        let error = put().timeout(Duration::from_millis(300)).await;
        let error = error.expect_err("no answer");
        assert_eq!(error.reason(), Some(Reason::WriteOutcomeUnknown));
        let Error::OutcomeUnknown {
            request_id: Some(id),
            ..
        } = error
        else {
            panic!("{error:?}");
        };
        // Another write must not make the server forget the first.
        for _ in 0..4 {
            eu.put("other", "v").await.expect("put");
        }
        let written = put().request_id(id).await.expect("its outcome");
        assert_eq!(written.version, Version(1));
        let ids = ids(&node);
        assert!(ids.iter().all(|(_, _, acked_below)| *acked_below == 1));
    }
}

/// The answer of a node of which a mirror is late.
fn not_everywhere() -> Act {
    Act::Fail(failure(Reason::AckNotReached, Code::DeadlineExceeded))
}

#[tokio::test]
async fn a_write_waits_for_regions_until_its_deadline() {
    for transport in BOTH {
        let late = || {
            let node = Fake::scripted(|number, _| match number {
                0 | 1 => not_everywhere(),
                _ => Act::Serve,
            });
            node.start()
        };
        let nodes = [&late().await, &late().await];
        let db = connect(transport, &nodes).await;
        let global = db.tag("global").expect("a tag");
        let put = global.put("k", "v").acknowledge(Acknowledge::Mirrors(2));
        put.await.expect("in both");
        let ids = nodes.map(ids);
        // The node that answered did what it could, so the other is not asked.
        let asked = ids.iter().find(|ids| !ids.is_empty()).expect("one");
        assert_eq!(ids.iter().map(Vec::len).sum::<usize>(), asked.len());
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|id| *id == asked[0]), "{asked:?}");
    }
}

#[tokio::test]
async fn a_write_that_is_not_everywhere_at_its_deadline_can_be_waited_for_later() {
    for transport in BOTH {
        let late = Arc::new(AtomicBool::new(true));
        let is_late = late.clone();
        let node = Fake::scripted(move |_, operation| match operation {
            Operation::Put(put) if put.key == "k" && is_late.load(Ordering::Relaxed) => {
                not_everywhere()
            }
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let global = db.tag("global").expect("a tag");
        let put = || global.put("k", "v").acknowledge(Acknowledge::Mirrors(2));
        let error = put().timeout(Duration::from_millis(300)).await;
        let error = error.expect_err("a mirror is late");
        assert_eq!(error.reason(), Some(Reason::AckNotReached));
        assert!(error.is_retryable());
        let id = error.request_id().expect("to wait on");
        // Another write must not make the server forget this one.
        for _ in 0..4 {
            global.put("other", "v").await.expect("put");
        }
        late.store(false, Ordering::Relaxed);
        put().request_id(id).await.expect("everywhere");
        let ids = ids(&node);
        assert!(ids.iter().all(|(_, _, acked_below)| *acked_below == 1));

        late.store(true, Ordering::Relaxed);
        let error = put().at_most_once().await.expect_err("a mirror is late");
        assert_eq!(error.reason(), Some(Reason::AckNotReached));
        assert_eq!(error.request_id(), None);
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn a_read_without_an_answer_is_late_and_was_sent_more_than_once() {
    for transport in BOTH {
        let silent = || Fake::scripted(|_, _| Act::Hush).start();
        let nodes = [&silent().await, &silent().await];
        let db = connect(transport, &nodes).await;
        let is_up =
            |node: &&Running| transport == Transport::Unary || node.fake.seen.lock().sessions > 0;
        while !nodes.iter().all(is_up) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let eu = db.tag("eu-only").expect("a tag");
        let get = eu.get("k").timeout(Duration::from_millis(1_500)).await;
        let error = get.expect_err("no answer");
        assert!(matches!(error, Error::Deadline(_)), "{error:?}");
        for node in nodes {
            assert_eq!(node.fake.seen.lock().operations.len(), 1);
        }
    }
}

/// Where nobody else could answer, a slow answer is better than none.
#[tokio::test]
async fn the_only_node_has_the_time_that_there_is() {
    for (timeout_ms, sent) in [(600, 1), (2_700, 3)] {
        let node = Fake::scripted(|_, _| Act::Hush).start().await;
        let db = connect(Transport::Session, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let get = eu.get("k").timeout(Duration::from_millis(timeout_ms));
        get.await.expect_err("no answer");
        assert_eq!(node.fake.seen.lock().operations.len(), sent);
    }
}

#[tokio::test]
async fn refusals_that_stand_are_returned_at_once() {
    for transport in BOTH {
        let cases = [
            (Reason::ResidencyViolation, Code::PermissionDenied),
            (Reason::UnknownTag, Code::FailedPrecondition),
            (Reason::InvalidArgument, Code::InvalidArgument),
            (Reason::Internal, Code::Internal),
        ];
        for (reason, code) in cases {
            let node = Fake::scripted(move |_, _| Act::Fail(failure(reason, code)));
            let node = node.start().await;
            let db = connect(transport, &[&node]).await;
            let eu = db.tag("eu-only").expect("a tag");
            let error = eu.put("k", "v").await.expect_err("refused");
            assert_eq!(error.reason(), Some(reason));
            let refusal = error.refusal().expect("an answer");
            assert_eq!((refusal.code(), refusal.message()), (code, reason.next()));
            assert_eq!(node.fake.seen.lock().operations.len(), 1);
        }
    }
}

/// A leader whose disk fills hands over within a second to one that has room; if none
/// has, the caller hears of it long before its deadline.
#[tokio::test]
async fn a_full_disk_is_waited_for_as_long_as_a_hand_over_takes() {
    for transport in BOTH {
        for full in [2, usize::MAX] {
            let refused = failure(Reason::DiskFull, Code::Unavailable);
            let node = Fake::scripted(move |number, _| match number < full {
                true => Act::Fail(refused.clone()),
                false => Act::Serve,
            });
            let node = node.start().await;
            let db = connect(transport, &[&node]).await;
            let eu = db.tag("eu-only").expect("a tag");
            let put = tokio::time::timeout(Duration::from_secs(4), eu.put("k", "v"));
            match (full, put.await.expect("before the deadline")) {
                (2, put) => drop(put.expect("written in the end")),
                (_, put) => {
                    let error = put.expect_err("it stays full");
                    assert_eq!(error.reason(), Some(Reason::DiskFull));
                }
            }
        }
    }
}

#[tokio::test]
async fn refusals_that_pass_are_waited_for() {
    for transport in BOTH {
        let node = Fake::scripted(|number, _| match number {
            0 => Act::Fail(v1::Failure {
                retry_after_ms: 200,
                ..failure(Reason::Overloaded, Code::ResourceExhausted)
            }),
            1 => Act::Fail(failure(Reason::NoQuorum, Code::Unavailable)),
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let started = tokio::time::Instant::from_std(started());
        let eu = db.tag("eu-only").expect("a tag");
        eu.put("k", "v").at_most_once().await.expect("put");
        assert!(started.elapsed() >= Duration::from_millis(200));
    }
}

#[allow(clippy::disallowed_methods, reason = "a test measures")]
fn started() -> std::time::Instant {
    std::time::Instant::now()
}

#[tokio::test]
async fn a_hint_leads_writes_and_strong_reads_to_the_leader() {
    for transport in BOTH {
        let leader = Fake::new().start().await;
        let address = leader.address.to_string();
        let follower = Fake::scripted(move |_, operation| match operation {
            Operation::Put(_) => Act::Fail(v1::Failure {
                metadata: [("leader".to_owned(), address.clone())].into(),
                ..failure(Reason::NoQuorum, Code::Unavailable)
            }),
            _ => Act::Serve,
        });
        let follower = follower.start().await;
        let db = connect(transport, &[&follower, &leader]).await;
        let eu = db.tag("eu-only").expect("a tag");
        for _ in 0..10 {
            eu.put("k", "v").await.expect("put");
        }
        assert_eq!(leader.fake.seen.lock().operations.len(), 10);
        assert!(follower.fake.seen.lock().operations.len() <= 1);
    }
}

#[tokio::test]
async fn a_node_that_refuses_is_left_for_one_that_answers() {
    for transport in BOTH {
        let answers = Fake::new().start().await;
        let refuses =
            Fake::scripted(|_, _| Act::Fail(failure(Reason::NoQuorum, Code::Unavailable)));
        let refuses = refuses.start().await;
        let db = connect(transport, &[&refuses, &answers]).await;
        let eu = db.tag("eu-only").expect("a tag");
        for _ in 0..10 {
            eu.put("k", "v").await.expect("put");
        }
        assert_eq!(answers.fake.seen.lock().operations.len(), 10);
        assert!(refuses.fake.seen.lock().operations.len() <= 1);
    }
}

#[tokio::test]
async fn another_node_goes_on_when_one_stops_and_the_session_comes_back() {
    for transport in BOTH {
        let one = Fake::new().start().await;
        let two = Fake::new().start().await;
        let db = connect(transport, &[&one, &two]).await;
        let eu = db.tag("eu-only").expect("a tag");
        eu.put("k", "v").await.expect("put");
        let (one, address) = one.stop().await;
        for _ in 0..20 {
            eu.put("k", "v").await.expect("put by the other");
        }
        let (_, _) = two.stop().await;
        let one = one.start_at(address).await;
        eu.put("k", "v").await.expect("put by the first again");
        drop(one);
    }
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let node = Fake::new().start().await;
    let endpoint = node.endpoint();
    let db = connect(Transport::Session, &[&node]).await;
    node.stop().await;
    let eu = db.tag("eu-only").expect("a tag");
    // The first may still have been on its way.
    eu.get("k")
        .timeout(Duration::from_millis(300))
        .await
        .expect_err("stopped");
    let error = eu.put("k", "v").timeout(Duration::from_millis(300)).await;
    let error = error.expect_err("stopped");
    assert_eq!(error.reason(), Some(Reason::Unreachable), "{error:?}");

    let error = Client::builder().endpoints([endpoint]).connect().await;
    let error = error.expect_err("stopped");
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn operations_that_wait_together_travel_together() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    let us = db.tag("us-only").expect("a tag");
    let mut batch = eu.batch();
    for number in 0..1500_u32 {
        let handle = if number % 3 == 0 { &us } else { &eu };
        batch = batch.put(handle.put(number.to_be_bytes(), "v"));
    }
    let outcomes = batch.await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Ok(Outcome::Put(_))))
    );
    let seen = node.fake.seen.lock();
    assert_eq!(seen.frames.iter().sum::<usize>(), 1500);
    assert!(seen.frames.len() <= 150, "{} frames", seen.frames.len());
    assert!(seen.frames.iter().all(|operations| *operations <= 1024));
    let us_records = seen.records.keys().filter(|(tag, _)| tag == "us-only");
    assert_eq!(us_records.count(), 500);
}

#[tokio::test]
async fn large_values_split_frames() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    let value = bytes::Bytes::from(vec![7; 400 * 1024]);
    let mut batch = eu.batch();
    for number in 0..20_u32 {
        batch = batch.put(eu.put(number.to_be_bytes(), value.clone()));
    }
    assert!(batch.await.iter().all(Result::is_ok));
    let seen = node.fake.seen.lock();
    assert!(seen.frames.iter().all(|operations| *operations <= 2));
}

#[tokio::test]
async fn operations_without_an_answer_are_bounded() {
    let node = Fake::scripted(|number, _| match number {
        0..8 => Act::Hush,
        _ => Act::Serve,
    });
    let node = node.start().await;
    let db = Client::builder()
        .endpoints([node.endpoint()])
        .in_flight_max(8)
        .timeout(Duration::from_secs(5))
        .connect()
        .await
        .expect("connects");
    let eu = db.tag("eu-only").expect("a tag");
    let mut reads: futures::stream::FuturesUnordered<_> = (0..100_u32)
        .map(|number| eu.get(number.to_be_bytes()).into_future())
        .collect();
    let waited = tokio::time::timeout(Duration::from_millis(300), reads.next()).await;
    assert!(waited.is_err(), "eight reads block the session");
    assert_eq!(node.fake.seen.lock().operations.len(), 8);
    // Their attempts end, the others pass, and they are asked again.
    let all: Vec<_> = reads.collect().await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(node.fake.seen.lock().operations.len(), 108);
}

#[tokio::test]
async fn callers_that_go_away_leave_no_trace() {
    let node = Fake::scripted(|number, _| match number {
        0..4 => Act::Hush,
        _ => Act::Serve,
    });
    let node = node.start().await;
    let db = Client::builder()
        .endpoints([node.endpoint()])
        .in_flight_max(4)
        .timeout(Duration::from_millis(900))
        .connect()
        .await
        .expect("connects");
    let eu = db.tag("eu-only").expect("a tag");
    for _ in 0..4 {
        let get = eu.get("k").into_future();
        let waited = tokio::time::timeout(Duration::from_millis(20), get).await;
        assert!(waited.is_err());
    }
    for _ in 0..100 {
        eu.get("k").await.expect("a permit came back");
    }
}

#[tokio::test]
async fn a_scan_reads_all_pages() {
    for transport in BOTH {
        let node = Fake::new().start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        for number in 0..25 {
            eu.put(format!("user/{number:02}"), "v").await.expect("put");
        }
        eu.put("visit/1", "v").await.expect("put");
        let scan = || eu.scan().prefix("user/").page_size(10);
        let mut pages = scan().pages();
        let mut sizes = Vec::new();
        while let Some(page) = pages.next().await.expect("a page") {
            sizes.push(page.records.len());
        }
        assert_eq!(sizes, [10, 10, 5]);
        let first = scan().await.expect("a page");
        let token = first.next_page_token().expect("more");
        let second = scan().page_token(token).await.expect("a page");
        assert_eq!(second.records[0].key.as_bytes(), b"user/10");
        let records: Vec<_> = scan().records().collect().await;
        assert_eq!(records.len(), 25);
        assert!(eu.scan().page_size(10_001).await.is_err());
    }
}

#[tokio::test]
async fn nothing_shows_a_key_or_a_value() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    let put = eu.put("sesame", "opened");
    let mut shown = format!("{put:?} {:?} {:?}", eu.get("sesame"), eu.delete("sesame"));
    shown += &format!("{:?}", eu.scan().prefix("sesame"));
    shown += &format!("{:?}", eu.batch().put(eu.put("sesame", "opened")));
    shown += &format!("{:?}", put.await);
    shown += &format!("{:?}", eu.get("sesame").await);
    eu.put("sesame2", "opened").await.expect("put");
    let page = eu.scan().page_size(1).await.expect("a page");
    shown += &format!("{page:?}");
    let mut pages = eu.scan().page_size(1).pages();
    pages.next().await.expect("a page");
    shown += &format!("{pages:?}");
    let wrong = eu.put("sesame".repeat(400), "opened").await;
    shown += &format!("{wrong:?} {}", wrong.as_ref().expect_err("too long"));
    shown += &format!("{db:?} {eu:?}");
    for secret in ["sesame", "opened", "[115", "115, 101"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("eu-only"));
}

#[tokio::test]
async fn what_cannot_work_is_not_sent() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    assert!(matches!(db.tag("EU"), Err(Error::Invalid(_))));
    let eu = db.tag("eu-only").expect("a tag");
    assert!(matches!(eu.get("").await, Err(Error::Invalid(_))));
    let large = vec![0; (1 << 20) + 1];
    assert!(matches!(eu.put("k", large).await, Err(Error::Invalid(_))));
    for endpoints in [vec![], vec!["https://a:1"], vec!["ftp://a:1"], vec!["a"]] {
        let error = Client::builder().endpoints(endpoints).connect().await;
        assert!(matches!(error, Err(Error::Invalid(_))), "{error:?}");
    }
    assert!(node.fake.seen.lock().operations.is_empty());
}

#[tokio::test]
async fn a_server_that_ends_the_session_is_left() {
    let node = Fake::scripted(|number, _| match number {
        0..3 => Act::Break,
        _ => Act::Serve,
    });
    let node = node.start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    eu.get("k").await.expect("get");
    assert_eq!(node.fake.seen.lock().sessions, 4);
}

#[test]
fn handles_are_shared_between_threads() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Client>();
    shared::<domicile_client::TagHandle>();
    shared::<Error>();
    sent::<domicile_client::Put>();
    sent::<domicile_client::Pages>();
}

/// A home whose nodes have moved is found again.
#[tokio::test]
async fn a_tag_that_was_sent_to_its_home_comes_back_when_the_home_is_gone() {
    for transport in BOTH {
        let homes = [Fake::new().start().await, Fake::new().start().await];
        let named = Arc::new(Mutex::new(homes[0].address.to_string()));
        let names = named.clone();
        let own = Fake::scripted(move |_, _| {
            let endpoints = names.lock().expect("nobody panicked").clone();
            Act::Fail(v1::Failure {
                metadata: [("endpoints".to_owned(), endpoints)].into(),
                ..failure(Reason::NotHeldHere, Code::FailedPrecondition)
            })
        });
        let own = own.start().await;
        let db = connect(transport, &[&own]).await;
        let shared = db.tag("eu-shared").expect("a tag");
        let [old, new] = homes;
        shared.put("k", "v").await.expect("at the home");
        assert_eq!(old.fake.seen.lock().applied, 1);
        *named.lock().expect("nobody panicked") = new.address.to_string();
        let (_, left) = old.stop().await;
        shared.put("k", "v").await.expect("where the home is now");
        assert_eq!(new.fake.seen.lock().applied, 1);
        // Sessions are opened again twice a second for as long as they are kept.
        let left = tokio::net::TcpListener::bind(left)
            .await
            .expect("it is free");
        let dialed = tokio::time::timeout(Duration::from_millis(1500), left.accept());
        dialed.await.expect_err("nobody goes there any more");
    }
}

/// One that accepts connections and says nothing must leave time for others.
#[tokio::test]
async fn a_command_goes_on_from_a_node_that_does_not_answer() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = silent.local_addr().expect("bound");
    let node = Fake::new().start().await;
    let db = Client::builder()
        .endpoints([format!("http://{address}"), node.endpoint()])
        .transport(Transport::Unary)
        .timeout(Duration::from_secs(2))
        .connect()
        .await
        .expect("connects");
    db.admin()
        .cluster_status()
        .await
        .expect("the other answers");
}

#[tokio::test]
async fn a_time_without_an_end_is_none() {
    let node = Fake::new().start().await;
    let db = connect(Transport::Session, &[&node]).await;
    let eu = db.tag("eu-only").expect("a tag");
    eu.put("k", "v").timeout(Duration::MAX).await.expect("put");
    let admin = db.admin().timeout(Duration::MAX);
    admin.cluster_status().await.expect("the status");
}

/// A home that has forgotten the client gives it another id; the write was not
/// applied under the old one.
#[tokio::test]
async fn a_forgotten_client_registers_again() {
    for transport in BOTH {
        let node = Fake::scripted(|number, _| match number {
            1 => Act::Fail(failure(Reason::RequestForgotten, Code::FailedPrecondition)),
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        for _ in 0..3 {
            eu.put("k", "v").await.expect("put");
        }
        let ids = ids(&node);
        assert_eq!(node.fake.seen.lock().registered, 2);
        assert_eq!(ids[0].0, ids[1].0, "one id for all writes");
        assert_ne!(ids[1].0, ids[2].0, "another after it was forgotten");
        assert_eq!(ids[2].0, ids[3].0);
    }
}

/// Where an attempt may have been applied, a new id would apply the write twice.
#[tokio::test]
async fn a_write_that_may_be_applied_gets_no_other_id() {
    for transport in BOTH {
        let node = Fake::scripted(|number, _| match number {
            0 => Act::ServeAndBreak,
            1 => Act::Fail(failure(Reason::RequestForgotten, Code::FailedPrecondition)),
            _ => Act::Serve,
        });
        let node = node.start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let error = eu.put("k", "v").await.expect_err("forgotten");
        assert_eq!(error.reason(), Some(Reason::RequestForgotten));
        assert_eq!(node.fake.seen.lock().applied, 1);
        eu.put("k", "v").await.expect("under another id");
        assert_eq!(node.fake.seen.lock().registered, 2);
    }
}

/// Writes that begin together ask for one id.
#[tokio::test]
async fn writes_that_begin_together_register_once() {
    for transport in BOTH {
        let node = Fake::new().start().await;
        let db = connect(transport, &[&node]).await;
        let eu = db.tag("eu-only").expect("a tag");
        let puts = (0..50).map(|at| eu.put(format!("k{at}"), "v").into_future());
        let written = futures::future::join_all(puts).await;
        assert!(written.iter().all(Result::is_ok));
        assert_eq!(node.fake.seen.lock().registered, 1);
    }
}

/// Opens no socket to one address, ever, as where packets are swallowed.
#[derive(Debug)]
struct Swallowed(String);

impl domicile_client::Dial for Swallowed {
    fn dial(
        &self,
        authority: String,
    ) -> futures::future::BoxFuture<'static, std::io::Result<Box<dyn domicile_client::Socket>>>
    {
        let swallowed = self.0.ends_with(&authority);
        Box::pin(async move {
            if swallowed {
                futures::future::pending::<()>().await;
            }
            let socket = tokio::net::TcpStream::connect(authority).await?;
            Ok(Box::new(socket) as Box<dyn domicile_client::Socket>)
        })
    }
}

/// Over a connection that never came to be nothing was sent: what must not be
/// sent twice goes to the next node.
#[tokio::test]
async fn a_node_that_is_not_reached_in_time_has_got_nothing() {
    for transport in BOTH {
        let lost = Fake::new().start().await;
        let node = Fake::new().start().await;
        let builder = Client::builder()
            .endpoints([lost.endpoint(), node.endpoint()])
            .dial(Arc::new(Swallowed(lost.endpoint())))
            .transport(transport)
            .timeout(Duration::from_secs(6));
        let db = builder.connect().await.expect("connects");
        let eu = db.tag("eu-only").expect("a tag");
        for _ in 0..4 {
            eu.put("k", "v").at_most_once().await.expect("put");
        }
        let cluster = db.admin().transfer_leader(16, "", 2).await;
        let told = cluster.map(drop);
        assert!(
            !matches!(told, Err(Error::OutcomeUnknown { .. })),
            "{told:?}"
        );
        assert!(lost.fake.seen.lock().operations.is_empty());
    }
}
