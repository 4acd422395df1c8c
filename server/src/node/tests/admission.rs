//! What is refused before its body is read.

use super::*;
use domicile_proto::{ERROR_DOMAIN, TAG_METADATA};
use tonic::Code;
use tonic_types::StatusExt;
use tower::ServiceExt;

fn tagged<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let tag = "eu-only".parse().unwrap();
    request.metadata_mut().insert(TAG_METADATA, tag);
    request
}

/// Calls a method with a body that begins and never ends.
async fn refused(running: &Running, method: &str, tag: Option<&str>) -> tonic::Status {
    let begun = futures::stream::once(async {
        Ok::<_, std::io::Error>(Bytes::from_static(b"\0\0\x10\0\0\x0a"))
    });
    let endless = begun.chain(futures::stream::pending());
    let body = tonic::body::Body::new(axum::body::Body::from_stream(endless));
    let path = format!("/domicile.v1.KvService/{method}");
    let mut request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers");
    if let Some(tag) = tag {
        request = request.header(TAG_METADATA, tag);
    }
    let called = running.channel().await.oneshot(request.body(body).unwrap());
    let answer = tokio::time::timeout(Duration::from_secs(5), called).await;
    let answer = answer.expect("refused without the rest of the body");
    tonic::Status::from_header_map(answer.unwrap().headers()).expect("a status")
}

/// The bytes of a key or a value that the node may not have are not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_does_not_wait_for_the_body() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let us = &nodes[1];
    for method in ["Put", "Get", "Delete", "Scan"] {
        let status = refused(us, method, Some("eu-only")).await;
        let info = status.get_details_error_info().expect("has error info");
        assert_eq!(info.reason, "NOT_HELD_HERE", "{method}");
        assert_eq!(info.domain, ERROR_DOMAIN);
        assert_eq!(info.metadata["home"], "eu");
        assert_eq!(status.code(), Code::FailedPrecondition);

        let status = refused(us, method, Some("no-such-tag")).await;
        assert_eq!(status.code(), Code::NotFound, "{method}");
        let status = refused(us, method, None).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
    }
    let counted = us.metrics.encode();
    let refusals = "kind=\"put\",outcome=\"NOT_HELD_HERE\"} 1";
    assert!(counted.contains(refusals), "{counted}");
}

/// A connection of which nothing is known but that it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_whom_no_region_is_known_is_refused() {
    let running = start_for("eu", None).await;
    for (method, tag) in [("Put", "eu-only"), ("Get", "shared"), ("Locate", "shared")] {
        let status = refused(&running, method, Some(tag)).await;
        let info = status.get_details_error_info().expect("has error info");
        assert_eq!(info.reason, "ACCESS_REGION_DENIED", "{method}");
    }
    let (_requests, rx) = mpsc::unbounded_channel();
    let mut client = KvServiceClient::new(running.channel().await);
    let session = client.session(UnboundedReceiverStream::new(rx)).await;
    let status = session.map(drop).expect_err("refused");
    assert_eq!(status.code(), Code::PermissionDenied);
}

/// Where callers may be elsewhere, they are told where they are taken for what
/// they are, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_says_where_to_go() {
    let policy = format!("{TWO_REGIONS}access_from = [\"region:eu\", \"region:us\"]\n");
    for (callers, named) in [(Some("127.0.0.1:9"), Some("127.0.0.1:9")), (None, None)] {
        let callers = callers.map(|address| v1::RegionCallers {
            region: "us".into(),
            address: address.into(),
        });
        let nodes = cluster_of(&policy, &["eu", "us"], callers).await;
        let status = refused(&nodes[1], "Put", Some("eu-only")).await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        let info = status.get_details_error_info().expect("has error info");
        assert_eq!(info.reason, "NOT_HELD_HERE");
        assert_eq!(info.metadata["home"], "eu");
        let endpoints = info.metadata.get("endpoints");
        assert_eq!(endpoints.map(String::as_str), named);
    }
}

/// What is admitted is served, of which the route is found once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admitted_call_is_served() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let mut client = KvServiceClient::new(nodes[0].channel().await);
    let put = v1::PutRequest {
        key: Bytes::from_static(b"user/42"),
        value: Bytes::from_static(b"alice"),
        ..v1::PutRequest::default()
    };
    client.put(tagged(put)).await.unwrap();
    let got = client.get(tagged(v1::GetRequest {
        key: Bytes::from_static(b"user/42"),
        options: None,
    }));
    let record = got.await.unwrap().into_inner().record.unwrap();
    assert_eq!(record.value, "alice");
}

/// In a session every operation of a frame is refused from the frame's tag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_refused_from_the_tag_of_its_frame() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    let mut session = nodes[1].session().await;
    let value = Bytes::from_static(b"alice");
    let operations = vec![put("user/42", value), get("user/42", v1::Level::Local)];
    session.send("eu-only", operations);
    for result in session.results(2).await {
        let Some(v1::session_result::Result::Failure(failure)) = result.result else {
            panic!("{:?}", result.result);
        };
        assert_eq!(failure.reason, "NOT_HELD_HERE");
    }
}

/// What stands beside a malformed operation in a frame is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_get_fails_alone() {
    let nodes = cluster(TWO_REGIONS, &["eu", "us"]).await;
    for (node, tag) in [(&nodes[0], "shared"), (&nodes[1], "shared")] {
        for level in [v1::Level::Strong, v1::Level::Local] {
            let mut session = node.session().await;
            let frame = vec![get("a", level), get("", level), get("b", level)];
            session.send(tag, frame);
            let mut results = session.results(3).await;
            results.sort_by_key(|result| result.id);
            let answers = results.iter().map(|result| match &result.result {
                Some(v1::session_result::Result::Failure(failure)) => failure.reason.as_str(),
                Some(_) => "answered",
                None => "nothing",
            });
            let answers: Vec<_> = answers.collect();
            assert_eq!(answers, ["answered", "INVALID_ARGUMENT", "answered"]);
        }
    }
}
