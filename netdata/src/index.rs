//! The services and their slices as rules and DNS look at them: a service with its slices in one step, and the names
//! of an address. Pure; the shell feeds it from the caches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use client::Key;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::compile::SERVICE_NAME_LABEL;

#[derive(Debug, Default)]
pub struct Index {
    services: HashMap<Key, Arc<Service>>,
    /// By service, then by the slice's own name.
    slices: HashMap<Key, BTreeMap<String, Arc<EndpointSlice>>>,
    /// The service that each slice was counted to.
    service_of: HashMap<Key, Key>,
    // Services are few per address; slices are kept by name, as several may hold one address.
    by_cluster_ip: HashMap<IpAddr, BTreeSet<Key>>,
    by_endpoint_ip: HashMap<IpAddr, BTreeSet<Key>>,
    namespaces: BTreeSet<String>,
}

impl Index {
    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = &Key> {
        self.services.keys()
    }

    pub fn slices(&self, service: &Key) -> Vec<&EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values).map(|slice| &**slice).collect()
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains(name)
    }

    /// The service that has this address.
    pub fn by_cluster_ip(&self, ip: IpAddr) -> Option<&Key> {
        self.by_cluster_ip.get(&ip)?.first()
    }

    /// The services of which this address is an endpoint.
    pub fn by_endpoint_ip(&self, ip: IpAddr) -> impl Iterator<Item = &Key> {
        self.by_endpoint_ip.get(&ip).into_iter().flatten().filter_map(|slice| self.service_of.get(slice))
    }

    pub fn set_namespace(&mut self, name: &str, exists: Exists) {
        match exists {
            Exists::Yes => self.namespaces.insert(name.to_owned()),
            Exists::No => self.namespaces.remove(name),
        };
    }

    /// Takes over a service as it is now.
    pub fn set_service(&mut self, key: &Key, service: Option<Arc<Service>>) {
        let new: Vec<IpAddr> = service.iter().flat_map(|s| cluster_ips(s)).collect();
        let old = match service {
            Some(service) => self.services.insert(key.clone(), service),
            None => self.services.remove(key),
        };
        let old: Vec<IpAddr> = old.iter().flat_map(|s| cluster_ips(s)).collect();
        move_entry(&mut self.by_cluster_ip, key, &old, &new);
    }

    /// Takes over a slice as it is now; the services whose endpoints it changes.
    pub fn set_slice(&mut self, key: &Key, slice: Option<Arc<EndpointSlice>>) -> Vec<Key> {
        let mut affected = Vec::new();
        let mut old = Vec::new();
        if let Some(service) = self.service_of.remove(key) {
            if let Some(slices) = self.slices.get_mut(&service) {
                old.extend(slices.remove(&key.name).iter().flat_map(|slice| endpoint_ips(slice)));
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            affected.push(service);
        }
        let mut new = Vec::new();
        if let Some(slice) = slice
            && let Some(service) = service_of(&slice)
        {
            new.extend(endpoint_ips(&slice));
            self.slices.entry(service.clone()).or_default().insert(key.name.clone(), slice);
            self.service_of.insert(key.clone(), service.clone());
            if !affected.contains(&service) {
                affected.push(service);
            }
        }
        move_entry(&mut self.by_endpoint_ip, key, &old, &new);
        affected
    }

    /// The keys of all slices.
    pub fn slice_keys(&self) -> impl Iterator<Item = &Key> {
        self.service_of.keys()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exists {
    Yes,
    No,
}

fn move_entry(map: &mut HashMap<IpAddr, BTreeSet<Key>>, key: &Key, old: &[IpAddr], new: &[IpAddr]) {
    for ip in old.iter().filter(|ip| !new.contains(ip)) {
        if let Some(keys) = map.get_mut(ip) {
            keys.remove(key);
            if keys.is_empty() {
                map.remove(ip);
            }
        }
    }
    for ip in new {
        map.entry(*ip).or_default().insert(key.clone());
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), name))
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.iter();
    let ips = spec.flat_map(|spec| spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    let unique: BTreeSet<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
    unique.into_iter().collect()
}

fn endpoint_ips(slice: &EndpointSlice) -> Vec<IpAddr> {
    let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let unique: BTreeSet<IpAddr> = ips.filter_map(|ip| ip.parse().ok()).collect();
    unique.into_iter().collect()
}
