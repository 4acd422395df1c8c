//! What no client of ours sends: requests that break a rule of the protocol, and bytes that are no requests.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use domicile_proto::limits::{
    CLIENT_MESSAGE_BYTES_MAX, KEY_BYTES_MAX, SESSION_OPERATIONS_MAX, VALUE_BYTES_MAX,
};
use domicile_proto::v1::kv_service_client::KvServiceClient;
use domicile_proto::v1::session_operation::Operation;
use domicile_proto::v1::session_result::Result as Answer;
use domicile_proto::{TAG_METADATA, v1};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::load::TAG;
use super::stage::Stage;
use crate::cluster::Broken;

/// How long the node may take to close or answer a connection that makes no sense.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// How long a request may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// The bytes of a burst of garbage.
const GARBAGE_BYTES: usize = 16 * 1024;

/// What opens an HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a refusal must be.
struct Expected {
    /// The gRPC code.
    code: Code,
    /// The stable reason; empty where the transport refuses before our code runs.
    reason: &'static str,
    /// What the message names.
    says: String,
}

fn expected(code: Code, reason: &'static str, says: impl ToString) -> Expected {
    Expected {
        code,
        reason,
        says: says.to_string(),
    }
}

fn invalid(says: impl ToString) -> Expected {
    expected(Code::InvalidArgument, "INVALID_ARGUMENT", says)
}

fn unknown_tag() -> Expected {
    expected(Code::NotFound, "UNKNOWN_TAG", "policy")
}

/// What was answered.
#[derive(Debug)]
struct Answered {
    code: Code,
    reason: String,
    message: String,
}

impl From<Status> for Answered {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone());
        Answered {
            code: status.code(),
            reason: reason.unwrap_or_default(),
            message: status.message().to_owned(),
        }
    }
}

impl From<v1::Failure> for Answered {
    fn from(failure: v1::Failure) -> Self {
        Answered {
            code: Code::from_i32(failure.code),
            reason: failure.reason,
            message: failure.message,
        }
    }
}

/// Requires that a request was refused, and as it must be.
fn refused<T>(what: &str, answer: Result<T, Answered>, expected: &Expected) -> Result<()> {
    let Err(answer) = answer else {
        return Err(Broken::new(format!("{what}: it was not refused")));
    };
    let right = answer.code == expected.code
        && answer.reason == expected.reason
        && answer.message.contains(&expected.says);
    if right {
        return Ok(());
    }
    Err(Broken::new(format!(
        "{what}: {answer:?}, not {:?} {} with {:?}",
        expected.code, expected.reason, expected.says
    )))
}

fn tagged<T>(tag: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_WAIT);
    if !tag.is_empty() {
        let tag = tonic::metadata::MetadataValue::from_static(tag);
        request.metadata_mut().insert(TAG_METADATA, tag);
    }
    request
}

fn put(key: usize, value: usize) -> v1::PutRequest {
    v1::PutRequest {
        key: vec![b'k'; key].into(),
        value: vec![b'v'; value].into(),
        ..v1::PutRequest::default()
    }
}

fn get(options: v1::ReadOptions) -> v1::GetRequest {
    v1::GetRequest {
        key: vec![b'k'].into(),
        options: Some(options),
    }
}

async fn dial(endpoint: &str) -> Result<Channel> {
    let endpoint = Channel::from_shared(endpoint.to_owned())?;
    endpoint.connect().await.context("no connection to a node")
}

/// Sends requests that must be refused. Answers how many there were.
pub(super) async fn requests(endpoint: &str) -> Result<usize> {
    let mut client = KvServiceClient::new(dial(endpoint).await?);
    let mut sent = 0;
    for (what, tag, request, expected) in [
        (
            "a key too long",
            TAG,
            put(KEY_BYTES_MAX + 1, 1),
            invalid(KEY_BYTES_MAX),
        ),
        ("no key", TAG, put(0, 1), invalid("key")),
        (
            "a value too long",
            TAG,
            put(1, VALUE_BYTES_MAX + 1),
            invalid(VALUE_BYTES_MAX),
        ),
        (
            "a message too long",
            TAG,
            put(1, CLIENT_MESSAGE_BYTES_MAX + 1),
            expected(Code::OutOfRange, "", CLIENT_MESSAGE_BYTES_MAX),
        ),
        ("an unknown tag", "no-such-tag", put(1, 1), unknown_tag()),
        ("no tag", "", put(1, 1), invalid(TAG_METADATA)),
        ("a malformed tag", "No Tag", put(1, 1), unknown_tag()),
        (
            "a request id of no client",
            TAG,
            v1::PutRequest {
                request_id: Some(v1::RequestId {
                    client: vec![1, 2, 3].into(),
                    sequence: 1,
                    acked_below: 1,
                }),
                ..put(1, 1)
            },
            invalid("request id"),
        ),
    ] {
        let answer = client.put(tagged(tag, request)).await;
        refused(what, answer.map_err(Answered::from), &expected)?;
        sent += 1;
    }
    for (what, options, expected) in [
        (
            "an unknown level",
            v1::ReadOptions {
                level: 99,
                ..v1::ReadOptions::default()
            },
            invalid("level"),
        ),
        (
            "a token that nobody made",
            v1::ReadOptions {
                level: v1::Level::AtLeast.into(),
                token: vec![7; 40].into(),
                ..v1::ReadOptions::default()
            },
            invalid("read position"),
        ),
    ] {
        let answer = client.get(tagged(TAG, get(options))).await;
        refused(what, answer.map_err(Answered::from), &expected)?;
        sent += 1;
    }
    let scan = v1::ScanRequest {
        page_token: vec![9; 40].into(),
        ..v1::ScanRequest::default()
    };
    let answer = client.scan(tagged(TAG, scan)).await;
    refused(
        "a page token that nobody made",
        answer.map_err(Answered::from),
        &invalid("token"),
    )?;
    Ok(sent + 1 + calls(endpoint).await?)
}

/// Calls that are none: a message of another kind, a method that is missing.
async fn calls(endpoint: &str) -> Result<usize> {
    let mut grpc = tonic::client::Grpc::new(dial(endpoint).await?);
    let calls = [
        // Where a put has its condition, a message, a scan has a number.
        (
            "a message of another kind",
            "Put",
            expected(Code::Internal, "", "decode"),
        ),
        (
            "an unknown method",
            "Burn",
            expected(Code::Unimplemented, "", ""),
        ),
    ];
    let sent = calls.len();
    for (what, method, expected) in calls {
        grpc.ready().await.context("the connection is gone")?;
        let codec = tonic_prost::ProstCodec::<v1::ScanRequest, v1::PutResponse>::default();
        let scan = v1::ScanRequest {
            page_size: 7,
            ..v1::ScanRequest::default()
        };
        let path = http::uri::PathAndQuery::try_from(format!("/domicile.v1.KvService/{method}"))?;
        let answer = grpc.unary(tagged(TAG, scan), path, codec).await;
        refused(what, answer.map_err(Answered::from), &expected)?;
    }
    Ok(sent)
}

/// Sends one frame on a session of its own. Answers what it was told of each operation, and how the session was closed.
async fn session(
    endpoint: &str,
    tag: &str,
    operations: Vec<v1::SessionOperation>,
) -> Result<(Vec<v1::SessionResult>, Option<Answered>)> {
    let mut client = KvServiceClient::new(dial(endpoint).await?);
    let due = operations.len();
    let frame = v1::SessionRequest {
        tag: tag.to_owned(),
        operations,
    };
    // The stream stays open, as that of a client which goes on.
    let (frames, requests) = tokio::sync::mpsc::channel(1);
    frames.send(frame).await.context("the channel is open")?;
    let requests = futures::stream::unfold(requests, |mut requests| async {
        let frame = requests.recv().await?;
        Some((frame, requests))
    });
    let mut answers = client.session(requests).await?.into_inner();
    let mut results = Vec::new();
    let read = async {
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    results.extend(answer.results);
                    if let Some(closing) = answer.closing {
                        return Some(Answered::from(closing));
                    }
                    if results.len() >= due {
                        return None;
                    }
                }
                Ok(None) => {
                    return Some(Answered {
                        code: Code::Ok,
                        reason: String::new(),
                        message: "the stream ended without a word".to_owned(),
                    });
                }
                Err(status) => return Some(Answered::from(status)),
            }
        }
    };
    let closed = tokio::time::timeout(ANSWER_WAIT, read).await;
    let closed = closed.map_err(|_| Broken::new("a session was never answered"))?;
    drop(frames);
    Ok((results, closed))
}

fn operation(id: u64, operation: Operation) -> v1::SessionOperation {
    v1::SessionOperation {
        id,
        operation: Some(operation),
    }
}

/// Sends frames of sessions that must be refused, whole or in part. Answers how many there were.
pub(super) async fn frames(endpoint: &str) -> Result<usize> {
    let read = |id| operation(id, Operation::Get(get(v1::ReadOptions::default())));
    let many = (0..=SESSION_OPERATIONS_MAX as u64).map(read).collect();
    let (_, closed) = session(endpoint, TAG, many).await?;
    let what = "a frame of too many operations";
    refused(
        what,
        closed.map_or(Ok(()), Err),
        &invalid(SESSION_OPERATIONS_MAX),
    )?;

    let (results, _) = session(endpoint, "no-such-tag", vec![read(1)]).await?;
    refused(
        "a frame of an unknown tag",
        failure(results),
        &unknown_tag(),
    )?;

    let none = v1::SessionOperation {
        id: 1,
        operation: None,
    };
    let (results, _) = session(endpoint, TAG, vec![none]).await?;
    let unsupported = expected(Code::Unimplemented, "UNSUPPORTED", "operation");
    refused("an empty operation", failure(results), &unsupported)?;

    // One bad operation is refused alone.
    let long = operation(1, Operation::Put(put(KEY_BYTES_MAX + 1, 1)));
    let (mut results, _) = session(endpoint, TAG, vec![long, read(2)]).await?;
    results.sort_by_key(|result| result.id);
    let rest = results.split_off(results.len().min(1));
    refused(
        "a key too long in a frame",
        failure(results),
        &invalid(KEY_BYTES_MAX),
    )?;
    if failure(rest).is_err() {
        return Err(Broken::new("an operation beside a bad one was refused"));
    }
    Ok(4)
}

/// The failure of the first operation.
fn failure(results: Vec<v1::SessionResult>) -> Result<(), Answered> {
    match results.into_iter().next().and_then(|first| first.result) {
        Some(Answer::Failure(failure)) => Err(failure.into()),
        Some(_) => Ok(()),
        None => Err(Answered {
            code: Code::Unknown,
            reason: String::new(),
            message: "no answer".to_owned(),
        }),
    }
}

/// Sends bytes that are no requests. Answers how many bursts there were.
pub(super) fn garbage(address: &str, stage: &Stage<'_>) -> Result<usize> {
    let mut chance = stage.chance.lock();
    let mut noise = || -> Vec<u8> { (0..GARBAGE_BYTES).map(|_| chance.next() as u8).collect() };
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let bursts = [
        noise(),
        vec![0; GARBAGE_BYTES],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        // A TLS client's first words.
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise()].concat(),
        [PREFACE, &noise()[..]].concat(),
        [PREFACE, &settings, &noise()].concat(),
        // A frame of 16 MiB that never comes.
        [PREFACE, &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        PREFACE[..10].to_vec(),
    ];
    for burst in &bursts {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(CLOSE_WAIT))?;
        // The node may close it before all is written.
        drop(socket.write_all(burst));
        drop(socket.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        // It may also wait for more, or reset the connection.
        drop(socket.read_to_end(&mut answer));
    }
    Ok(bursts.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_measured_by_code_reason_and_words() {
        let answer = || Answered {
            code: Code::InvalidArgument,
            reason: "INVALID_ARGUMENT".to_owned(),
            message: "at most 1024".to_owned(),
        };
        let ok = |expected| refused::<()>("it", Err(answer()), &expected).is_ok();
        assert!(ok(invalid(1024)));
        assert!(!ok(invalid(1025)));
        assert!(!ok(expected(Code::InvalidArgument, "UNKNOWN_TAG", 1024)));
        assert!(!ok(expected(Code::Internal, "INVALID_ARGUMENT", 1024)));
        assert!(refused("it", Ok(()), &invalid("")).is_err());
    }
}
