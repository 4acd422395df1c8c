//! One operation: an invocation and, if it came, its completion.

use super::{F, Kind, Level, Meta, Op, Process, Value};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It took effect.
    Ok,
    /// It had no effect.
    Fail,
    /// Nobody knows; an invocation without a completion is this too.
    Info,
}

/// A paired operation, borrowed from its history.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The invocation.
    pub invoke: &'a Op,
    /// The completion, absent when the run ended first.
    pub complete: Option<&'a Op>,
}

impl<'a> Operation<'a> {
    /// How it ended.
    pub fn outcome(&self) -> Outcome {
        match self.complete.map(|op| op.kind) {
            Some(Kind::Ok) => Outcome::Ok,
            Some(Kind::Fail) => Outcome::Fail,
            _ => Outcome::Info,
        }
    }

    /// Whether it took effect for certain.
    pub fn is_ok(&self) -> bool {
        self.outcome() == Outcome::Ok
    }

    /// The completion of an operation that is ok.
    pub fn ok(&self) -> Option<&'a Op> {
        self.complete.filter(|op| op.kind == Kind::Ok)
    }

    /// What was asked.
    pub fn f(&self) -> &'a F {
        &self.invoke.f
    }

    /// The key, or the empty string.
    pub fn key(&self) -> &'a str {
        self.invoke.key.as_deref().unwrap_or("")
    }

    /// Who asked.
    pub fn process(&self) -> Process {
        self.invoke.process
    }

    /// The place of the invocation in the total order.
    pub fn called(&self) -> u64 {
        self.invoke.index
    }

    /// The place of the answer in the total order; an unknown outcome returns at infinity.
    pub fn returned(&self) -> u64 {
        match self.complete {
            Some(op) if op.kind != Kind::Info => op.index,
            _ => u64::MAX,
        }
    }

    /// The answered value if ok, else the argument.
    pub fn value(&self) -> &'a Value {
        self.ok().map_or(&self.invoke.value, |op| &op.value)
    }

    /// What the reply said about itself; the invocation's if there was no reply.
    pub fn meta(&self) -> &'a Meta {
        self.complete.map_or(&self.invoke.meta, |op| &op.meta)
    }

    /// The level asked for; strong if nothing was said.
    pub fn level(&self) -> Level {
        self.invoke
            .meta
            .level
            .or(self.meta().level)
            .unwrap_or(Level::Strong)
    }

    /// The session, whichever line names it.
    pub fn session(&self) -> Option<&'a str> {
        self.invoke
            .meta
            .session
            .as_deref()
            .or(self.meta().session.as_deref())
    }

    /// The idempotency key, whichever line names it.
    pub fn request_id(&self) -> Option<&'a str> {
        self.invoke
            .meta
            .request_id
            .as_deref()
            .or(self.meta().request_id.as_deref())
    }

    /// The line numbers of this operation, for findings.
    pub fn indices(&self) -> Vec<u64> {
        let mut indices = vec![self.invoke.index];
        indices.extend(self.complete.map(|op| op.index));
        indices
    }
}
