//! Refuses transactions that have no clear meaning: a key changed twice at one revision.
//!
//! The two branches of a transaction exclude each other, so each is looked at by itself; a transaction inside a branch
//! adds what either of its own branches changes.

use std::collections::HashMap;

use bytes::Bytes;

use crate::{Error, Op, Txn, command::MAX_DEPTH, types::in_range};

pub fn check(txn: &Txn) -> Result<(), Error> {
    for branch in [&txn.then, &txn.otherwise] {
        // Most transactions are one operation, and what is alone repeats nothing.
        if !matches!(branch[..], [] | [Op::Put { .. } | Op::Update { .. } | Op::Delete { .. } | Op::Range { .. }]) {
            changes(branch, 0)?;
        }
    }
    Ok(())
}

const TWICE: Error = Error::InvalidTxn { reason: "a key is changed twice" };

/// What a list of operations changes.
#[derive(Default)]
struct Changes<'a> {
    /// With the number of the operation that puts it.
    puts: HashMap<&'a Bytes, usize>,
    deletes: Vec<(&'a Bytes, Option<&'a Bytes>)>,
}

impl Changes<'_> {
    fn deletes(&self, key: &Bytes) -> bool {
        let mut deletes = self.deletes.iter();
        deletes.any(|(start, end)| end.map_or(key == *start, |end| in_range(key, start, end)))
    }
}

fn changes(ops: &[Op], depth: usize) -> Result<Changes<'_>, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::InvalidTxn { reason: "transactions are too deep in each other" });
    }
    let mut all = Changes::default();
    for op in ops {
        if let Op::Delete { start, end } = op {
            all.deletes.push((start, end.as_ref()));
        }
    }
    for (number, op) in ops.iter().enumerate() {
        let Op::Txn(inner) = op else { continue };
        let branches = [changes(&inner.then, depth + 1)?, changes(&inner.otherwise, depth + 1)?];
        for key in branches.iter().flat_map(|branch| branch.puts.keys()) {
            // Of the inner transaction's branches only one is taken, so both may put a key.
            if all.deletes(key) || *all.puts.entry(key).or_insert(number) != number {
                return Err(TWICE);
            }
        }
        for branch in branches {
            all.deletes.extend(branch.deletes);
        }
    }
    for (number, op) in ops.iter().enumerate() {
        if let Op::Put { key, .. } | Op::Update { key, .. } = op
            && (all.deletes(key) || all.puts.insert(key, number).is_some())
        {
            return Err(TWICE);
        }
    }
    Ok(all)
}
