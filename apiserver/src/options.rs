//! What the query of a list, watch or write says, checked. Pure.

use api::status::{Cause, CauseReason, Reason, Status};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::query::Query;

/// Which state a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The newest, confirmed with the other servers.
    Latest,
    /// Whatever this server has.
    Any,
    NotOlderThan(u64),
    Exact(u64),
}

#[derive(Debug, PartialEq, Eq)]
pub struct ListOptions {
    pub at: At,
    /// Items of one page; zero for all.
    pub limit: usize,
    /// The first key of the page, relative to the collection; empty at the beginning.
    pub start: String,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchStart {
    /// The state as `ADDED` events, then changes; `end` says whether a bookmark marks the end of the state.
    State { at: At, end: StateEnd },
    /// Changes after a revision.
    After(u64),
    /// Changes from now on.
    Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateEnd {
    Bookmark,
    Silent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bookmarks {
    Send,
    Omit,
}

#[derive(Debug, PartialEq, Eq)]
pub struct WatchOptions {
    pub start: WatchStart,
    pub bookmarks: Bookmarks,
    pub timeout_seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// Everything but the commit.
    All,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// What the opaque `continue` token holds.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Token {
    v: String,
    /// The snapshot's revision; -1 goes on in the newest state.
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

pub fn token(revision: Option<u64>, start: &str) -> String {
    let rv = revision.map_or(-1, |r| i64::try_from(r).unwrap_or(-1));
    let token = Token { v: TOKEN_VERSION.into(), rv, start: start.into() };
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token is plain data"))
}

/// The revision (none: the newest) and the start of a token.
fn parse_token(text: &str) -> Option<(Option<u64>, String)> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let token: Token = serde_json::from_slice(&json).ok()?;
    let in_form = token.v == TOKEN_VERSION && !token.start.is_empty() && (token.rv == -1 || token.rv > 0);
    in_form.then_some((u64::try_from(token.rv).ok(), token.start))
}

fn invalid(field: &str, what: &str) -> Status {
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {what}");
    let mut status = Status::new(Reason::Invalid, message);
    status.details.group = "meta.k8s.io".into();
    status.details.kind = "ListOptions".into();
    let message = format!("Forbidden: {what}");
    status.details.causes = vec![Cause { reason: CauseReason::FieldValueForbidden, message, field: field.into() }];
    status
}

/// A `resourceVersion`: none when it is absent.
fn revision(query: &Query) -> Result<Option<u64>, Status> {
    let parse = |text: &str| {
        text.parse().map_err(|_| Status::bad_request(format!("invalid resource version: {text:?} is not a number")))
    };
    query.get("resourceVersion").map(parse).transpose()
}

enum Match {
    Exact,
    NotOlderThan,
}

fn revision_match(query: &Query) -> Result<Option<Match>, Status> {
    match query.get("resourceVersionMatch") {
        None => Ok(None),
        Some("Exact") => Ok(Some(Match::Exact)),
        Some("NotOlderThan") => Ok(Some(Match::NotOlderThan)),
        Some(other) => {
            Err(invalid("resourceVersionMatch", &format!("unknown value {other:?}: use Exact or NotOlderThan")))
        }
    }
}

fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, Status> {
    let parse =
        |text: &str| text.parse().map_err(|_| Status::bad_request(format!("{name} must be a number, not {text:?}")));
    query.get(name).map(parse).transpose()
}

/// `resourceVersion` of a get.
pub fn get(query: &Query) -> Result<At, Status> {
    Ok(match revision(query)? {
        None => At::Latest,
        Some(0) => At::Any,
        Some(revision) => At::NotOlderThan(revision),
    })
}

pub fn list(query: &Query) -> Result<ListOptions, Status> {
    let revision = revision(query)?;
    let wanted = revision_match(query)?;
    if query.get("sendInitialEvents").is_some() {
        return Err(invalid("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    let limit = number::<i64>(query, "limit")?.map_or(0, |n| usize::try_from(n).unwrap_or(0));
    if let Some(text) = query.get("continue") {
        if wanted.is_some() {
            return Err(invalid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"));
        }
        if revision.is_some_and(|r| r != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (revision, start) =
            parse_token(text).ok_or_else(|| Status::bad_request("continue key is not valid: it is not one of ours"))?;
        return Ok(ListOptions { at: revision.map_or(At::Latest, At::Exact), limit, start });
    }
    let at = match (revision, wanted) {
        (None, Some(_)) => {
            let what = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(invalid("resourceVersionMatch", what));
        }
        (Some(0), Some(Match::Exact)) => {
            let what = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
            return Err(invalid("resourceVersionMatch", what));
        }
        (None, None) => At::Latest,
        (Some(0), _) => At::Any,
        (Some(revision), Some(Match::Exact)) => At::Exact(revision),
        // An old client that pages from a revision means exactly that one.
        (Some(revision), None) if limit > 0 => At::Exact(revision),
        (Some(revision), _) => At::NotOlderThan(revision),
    };
    Ok(ListOptions { at, limit, start: String::new() })
}

pub fn watch(query: &Query) -> Result<WatchOptions, Status> {
    let revision = revision(query)?;
    let wanted = revision_match(query)?;
    let bookmarks = if query.flag("allowWatchBookmarks") { Bookmarks::Send } else { Bookmarks::Omit };
    if query.get("continue").is_some() {
        return Err(Status::bad_request("a watch cannot be continued: use resourceVersion"));
    }
    let start = match (query.get("sendInitialEvents"), wanted) {
        (Some(_), None) => {
            let what = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(invalid("resourceVersionMatch", what));
        }
        (Some(_), Some(Match::Exact)) => {
            let what = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(invalid("resourceVersionMatch", what));
        }
        (None, Some(_)) => {
            let what = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(invalid("resourceVersionMatch", what));
        }
        (Some(_), Some(Match::NotOlderThan)) if query.flag("sendInitialEvents") => {
            let at = match revision {
                None => At::Latest,
                Some(0) => At::Any,
                Some(revision) => At::NotOlderThan(revision),
            };
            let end = if bookmarks == Bookmarks::Send { StateEnd::Bookmark } else { StateEnd::Silent };
            WatchStart::State { at, end }
        }
        (Some(_), Some(Match::NotOlderThan)) => match revision {
            None | Some(0) => WatchStart::Now,
            Some(revision) => WatchStart::After(revision),
        },
        (None, None) => match revision {
            None => WatchStart::State { at: At::Latest, end: StateEnd::Silent },
            Some(0) => WatchStart::State { at: At::Any, end: StateEnd::Silent },
            Some(revision) => WatchStart::After(revision),
        },
    };
    Ok(WatchOptions { start, bookmarks, timeout_seconds: number(query, "timeoutSeconds")? })
}

pub fn dry_run(query: &Query) -> Result<DryRun, Status> {
    match query.get("dryRun") {
        None => Ok(DryRun::No),
        Some("All") => Ok(DryRun::All),
        Some(other) => Err(Status::bad_request(format!("dryRun must be All, not {other:?}"))),
    }
}

pub fn field_validation(query: &Query) -> Result<FieldValidation, Status> {
    match query.get("fieldValidation") {
        None | Some("Warn") => Ok(FieldValidation::Warn),
        Some("Ignore") => Ok(FieldValidation::Ignore),
        Some("Strict") => Ok(FieldValidation::Strict),
        Some(other) => {
            Err(Status::bad_request(format!("fieldValidation must be Ignore, Warn or Strict, not {other:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let page = token(Some(9), "a/b\0");
        let rest = token(None, "a/b\0");
        let exact = |limit, start: &str| Ok(ListOptions { at: At::Exact(9), limit, start: start.into() });
        let plain = |at, limit| Ok(ListOptions { at, limit, start: String::new() });
        for (query, want) in [
            (String::new(), plain(At::Latest, 0)),
            ("limit=500".into(), plain(At::Latest, 500)),
            ("resourceVersion=0&limit=5".into(), plain(At::Any, 5)),
            ("resourceVersion=9".into(), plain(At::NotOlderThan(9), 0)),
            ("resourceVersion=9&limit=1".into(), exact(1, "")),
            ("resourceVersion=9&resourceVersionMatch=Exact".into(), exact(0, "")),
            ("resourceVersion=9&limit=1&resourceVersionMatch=NotOlderThan".into(), plain(At::NotOlderThan(9), 1)),
            (format!("limit=2&continue={page}"), exact(2, "a/b\0")),
            (format!("continue={rest}"), Ok(ListOptions { at: At::Latest, limit: 0, start: "a/b\0".into() })),
            ("resourceVersionMatch=Exact".into(), Err(422)),
            ("resourceVersion=0&resourceVersionMatch=Exact".into(), Err(422)),
            ("resourceVersion=5&resourceVersionMatch=Nonsense".into(), Err(422)),
            ("sendInitialEvents=true".into(), Err(422)),
            (format!("resourceVersion=3&continue={page}"), Err(400)),
            (format!("resourceVersionMatch=Exact&continue={page}"), Err(422)),
            ("continue=abc".into(), Err(400)),
            ("resourceVersion=abc".into(), Err(400)),
            ("limit=abc".into(), Err(400)),
        ] {
            assert_eq!(list(&Query::parse(Some(&query))).map_err(|s| s.code), want, "{query}");
        }
    }

    #[test]
    fn watches() {
        use WatchStart::{After, Now, State};
        for (query, want) in [
            ("", Ok(State { at: At::Latest, end: StateEnd::Silent })),
            ("resourceVersion=0", Ok(State { at: At::Any, end: StateEnd::Silent })),
            ("resourceVersion=7", Ok(After(7))),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
                Ok(State { at: At::Latest, end: StateEnd::Bookmark }),
            ),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=7",
                Ok(State { at: At::NotOlderThan(7), end: StateEnd::Silent }),
            ),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Ok(Now)),
            ("sendInitialEvents=true", Err(422)),
            ("sendInitialEvents=true&resourceVersionMatch=Exact&resourceVersion=3", Err(422)),
            ("resourceVersionMatch=NotOlderThan&resourceVersion=3", Err(422)),
            ("timeoutSeconds=x", Err(400)),
        ] {
            let got = watch(&Query::parse(Some(query))).map(|o| o.start).map_err(|s| s.code);
            assert_eq!(got, want, "{query}");
        }
    }

    #[test]
    fn write_options() {
        let query = |text| Query::parse(Some(text));
        assert_eq!(dry_run(&query("dryRun=All")).unwrap(), DryRun::All);
        assert_eq!(dry_run(&query("dryRun=Some")).unwrap_err().code, 400);
        assert_eq!(field_validation(&query("")).unwrap(), FieldValidation::Warn);
        assert_eq!(field_validation(&query("fieldValidation=Strict")).unwrap(), FieldValidation::Strict);
        assert_eq!(field_validation(&query("fieldValidation=x")).unwrap_err().code, 400);
    }
}
