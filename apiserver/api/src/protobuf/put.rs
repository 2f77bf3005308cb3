//! Writing the encoding: one function for each form of a field.

pub fn varint(out: &mut Vec<u8>, number: u32, value: u64) {
    tag(out, number, 0);
    raw(out, value);
}

pub fn double(out: &mut Vec<u8>, number: u32, value: f64) {
    tag(out, number, 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A string, bytes or an encoded message.
pub fn bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    tag(out, number, 2);
    raw(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A message that `fill` writes.
pub fn nested(out: &mut Vec<u8>, number: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(out, number, &inner);
}

fn tag(out: &mut Vec<u8>, number: u32, wire_type: u64) {
    raw(out, u64::from(number) << 3 | wire_type);
}

fn raw(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
