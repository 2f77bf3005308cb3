//! The encoding underneath: tags, variable-length numbers, lengths.

/// What is wrong with the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Error(pub &'static str);

impl Error {
    pub fn at(self, at: impl Into<String>) -> super::Error {
        super::Error::Malformed { at: at.into(), what: self.0 }
    }
}

/// One value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    pub fn varint(self) -> Result<u64, Error> {
        match self {
            Wire::Varint(n) => Ok(n),
            _ => Err(Error("expected a number")),
        }
    }

    pub fn double(self) -> Result<f64, Error> {
        match self {
            Wire::Fixed64(n) => Ok(f64::from_bits(n)),
            Wire::Fixed32(n) => Ok(f64::from(f32::from_bits(n))),
            _ => Err(Error("expected a floating point number")),
        }
    }

    pub fn bytes(self) -> Result<&'a [u8], Error> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err(Error("expected a string, bytes or a message")),
        }
    }

    pub fn text(self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error("string is not UTF-8"))
    }
}

/// The fields of one message, in the order in which they come.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next field's number and value.
    pub fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or(Error("bad field number"))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error("length out of range"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(Error("unsupported wire type")),
        };
        Ok(Some((number, wire)))
    }

    pub fn packed_varint(&mut self) -> Result<Option<Wire<'a>>, Error> {
        if self.rest.is_empty() { Ok(None) } else { Ok(Some(Wire::Varint(self.varint()?))) }
    }

    pub fn packed_double(&mut self) -> Result<Option<Wire<'a>>, Error> {
        if self.rest.is_empty() { Ok(None) } else { Ok(Some(Wire::Fixed64(u64::from_le_bytes(self.array()?)))) }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for i in 0..10 {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error("number is too long"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Error("ends too early"))?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Error("ends too early"))?;
        self.rest = rest;
        Ok(head)
    }
}
