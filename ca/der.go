package ca

import "fmt"

// maxDepth bounds how deep a request may be nested; a real one has seven levels.
const maxDepth = 16

// strictDER looks for the first octet at which b is not one DER value (X.690 §10,
// §11): another length form than the shortest, an indefinite length, a string in
// pieces, padding, octets behind the value. What other parsers would read into such
// bytes is their choice, so they are refused before any parser sees them. It returns
// the offset and what is wrong there, or "".
func strictDER(b []byte) (at int, wrong string) {
	var ends [maxDepth]int
	depth := 0
	for at < len(b) {
		frame := len(b)
		if depth > 0 {
			frame = ends[depth-1]
		}
		tag, body, end, wrong := derHeader(b, at, frame)
		if wrong != "" {
			return at, wrong
		}
		constructed := tag&0x20 != 0
		if tag < 0x40 && constructed != (tag&0x1f == 16 || tag&0x1f == 17) {
			return at, "a SEQUENCE or SET that is primitive, or another type in pieces"
		}
		if !constructed {
			if wrong := derValue(tag, b[body:end]); wrong != "" {
				return at, wrong
			}
			at = end
		} else {
			if depth == maxDepth {
				return at, fmt.Sprintf("nested more than %d levels deep", maxDepth)
			}
			ends[depth] = end
			depth++
			at = body
		}
		for depth > 0 && at == ends[depth-1] {
			depth--
		}
		if depth == 0 && at < len(b) {
			return at, "octets follow behind the end"
		}
	}
	if depth > 0 || len(b) == 0 {
		return at, "it ends too early"
	}
	return 0, ""
}

// derHeader reads identifier and length octets (X.690 §8.1.2, §8.1.3, §10.1).
func derHeader(b []byte, at, frame int) (tag byte, body, end int, wrong string) {
	tag = b[at]
	if tag&0x1f == 0x1f || tag == 0 {
		return 0, 0, 0, "a tag that has no place in a request"
	}
	body = at + 2
	if body > frame {
		return 0, 0, 0, "it ends too early"
	}
	n := int(b[at+1])
	switch {
	case n == 0x80:
		return 0, 0, 0, "an indefinite length (BER)"
	case n > 0x83:
		return 0, 0, 0, "a length of more than three octets"
	case n > 0x80:
		octets := n - 0x80
		if body += octets; body > frame {
			return 0, 0, 0, "it ends too early"
		}
		n = 0
		for _, o := range b[body-octets : body] {
			n = n<<8 | int(o)
		}
		if b[body-octets] == 0 || n < 0x80 {
			return 0, 0, 0, "a length that is not in its shortest form"
		}
	}
	if body+n > frame {
		return 0, 0, 0, "a length that reaches beyond what surrounds it"
	}
	return tag, body, body + n, ""
}

// derValue checks the primitive types that have more than one BER encoding.
func derValue(tag byte, v []byte) (wrong string) {
	switch tag {
	case 1: // BOOLEAN
		if len(v) != 1 || v[0] != 0 && v[0] != 0xff {
			return "a BOOLEAN that is neither 00 nor FF"
		}
	case 2, 10: // INTEGER, ENUMERATED
		if len(v) == 0 || len(v) > 1 && (v[0] == 0 && v[1] < 0x80 || v[0] == 0xff && v[1] >= 0x80) {
			return "an INTEGER that is not in its shortest form"
		}
	case 3: // BIT STRING
		if len(v) == 0 || v[0] > 7 || len(v) == 1 && v[0] != 0 || len(v) > 1 && v[len(v)-1]&(1<<v[0]-1) != 0 {
			return "a BIT STRING with unused bits that are not zero"
		}
	case 5: // NULL
		if len(v) != 0 {
			return "a NULL that is not empty"
		}
	case 6: // OBJECT IDENTIFIER
		start := true
		for _, o := range v {
			if start && o == 0x80 {
				return "an OBJECT IDENTIFIER that is not in its shortest form"
			}
			start = o < 0x80
		}
		if len(v) == 0 || !start {
			return "an OBJECT IDENTIFIER that ends too early"
		}
	}
	return ""
}
