//! From a type's name to what `k8s-openapi` knows about it. Only kinds stand here, with the types that further
//! subresources take; the types within them follow by reference.

use k8s_openapi::{
    api::{
        apps::v1 as apps, authentication::v1 as authentication, autoscaling::v1 as autoscaling,
        coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
        policy::v1 as policy,
    },
    apimachinery::pkg::apis::meta::v1 as meta,
};
use schemars::{JsonSchema, SchemaGenerator};

/// Adds a type, and all that it refers to, to the generator's definitions.
pub type Generate = fn(&mut SchemaGenerator);

const TYPES: &[(&str, Generate)] = &[
    ("io.k8s.api.apps.v1.Deployment", add::<apps::Deployment>),
    ("io.k8s.api.apps.v1.ReplicaSet", add::<apps::ReplicaSet>),
    ("io.k8s.api.authentication.v1.TokenRequest", add::<authentication::TokenRequest>),
    ("io.k8s.api.autoscaling.v1.Scale", add::<autoscaling::Scale>),
    ("io.k8s.api.coordination.v1.Lease", add::<coordination::Lease>),
    ("io.k8s.api.core.v1.Binding", add::<core::Binding>),
    ("io.k8s.api.core.v1.ConfigMap", add::<core::ConfigMap>),
    ("io.k8s.api.core.v1.Endpoints", add::<core::Endpoints>),
    ("io.k8s.api.core.v1.Event", add::<core::Event>),
    ("io.k8s.api.core.v1.Namespace", add::<core::Namespace>),
    ("io.k8s.api.core.v1.Node", add::<core::Node>),
    ("io.k8s.api.core.v1.Pod", add::<core::Pod>),
    ("io.k8s.api.core.v1.ReplicationController", add::<core::ReplicationController>),
    ("io.k8s.api.core.v1.Secret", add::<core::Secret>),
    ("io.k8s.api.core.v1.Service", add::<core::Service>),
    ("io.k8s.api.core.v1.ServiceAccount", add::<core::ServiceAccount>),
    ("io.k8s.api.discovery.v1.EndpointSlice", add::<discovery::EndpointSlice>),
    ("io.k8s.api.events.v1.Event", add::<events::Event>),
    ("io.k8s.api.policy.v1.Eviction", add::<policy::Eviction>),
];

/// What every document needs.
pub fn common(generator: &mut SchemaGenerator) {
    add::<meta::DeleteOptions>(generator);
    add::<meta::Status>(generator);
    add::<meta::ListMeta>(generator);
}

pub fn find(schema: &str) -> Option<Generate> {
    TYPES.iter().find(|(name, _)| *name == schema).map(|(_, generate)| *generate)
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}
