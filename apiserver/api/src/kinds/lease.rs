//! Lease: who holds something, and until when.

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::Value;

use super::{BASE, print};
use crate::{
    decode,
    field::text,
    registry::{Kind, Strategy},
    table::Column,
};

pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    columns: &[Column::NAME, Column::text("Holder", "Who holds the lease."), Column::AGE],
    strategy: &Leases,
    check: decode::check::<Lease>,
    ..BASE
};

struct Leases;

impl Strategy for Leases {
    fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let holder = object.get("spec").map(|spec| text(spec, "holderIdentity")).unwrap_or_default();
        vec![print::name(object), holder.into(), print::age(object, now)]
    }
}
