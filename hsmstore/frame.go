package hsmstore

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Store and worker exchange frames over their socket:
//
//	length u32 ‖ request id u64 ‖ op u8 ‖ payload        (big-endian; length counts what follows it)
//
// A reply carries the id of its request and a status in place of op. Signing
// payloads are fixed binary; the rare control payloads are JSON.

const (
	frameHeader = 4 + 8 + 1
	// maxFrame bounds one message: a CRL of about a million entries fits.
	maxFrame = 64 << 20
	// maxMessage is the longest message whose signing request fits.
	maxMessage = maxFrame - (frameHeader - 4) - signHeader
)

// Operations of the signing worker.
const (
	opSign    byte = 1  // payload: signRequest
	opLoad    byte = 2  // payload: JSON loadRequest; reply: JSON loadReply
	opStatus  byte = 3  // reply: JSON workerStatus
	opSeal    byte = 9  // genesis is over; reply: JSON
	opRosters byte = 11 // payload: JSON rosterChain; reply: JSON, or statusRefused
	opRetire  byte = 10 // the officers ended the cluster; reply: JSON, then the worker ends
)

// Statuses of a reply.
const (
	statusOK       byte = 0 // payload: the signature, or JSON
	statusRefused  byte = 1 // payload: why; the caller's fault, nothing was signed
	statusKeyFault byte = 2 // payload: why; the token has or wants this key no more, others may
	statusSessions byte = 4 // id 0, payload u16: so many sessions sign now
	statusBusy     byte = 5 // payload: why; the HSM says "later"
	statusFatal    byte = 3 // payload: exit class u8 ‖ why; the worker is about to end
)

// signRequest is key id 16 ‖ intent u64 ‖ message. Intent is the index of the
// intent leaf, or audit.NoIndex for checkpoints and probes.
const signHeader = 16 + 8

// newFrame makes room for a frame with its header; finish sets its length.
func newFrame(id uint64, op byte, payload int) []byte {
	b := make([]byte, frameHeader, frameHeader+payload)
	binary.BigEndian.PutUint64(b[4:], id)
	b[12] = op
	return b
}

func finishFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func signFrame(id uint64, key KeyID, intent uint64, message []byte) []byte {
	b := newFrame(id, opSign, signHeader+len(message))
	b = append(b, key[:]...)
	b = binary.BigEndian.AppendUint64(b, intent)
	b = append(b, message...)
	return finishFrame(b)
}

// frame is a received frame. Its payload is its own.
type frame struct {
	id      uint64
	op      byte
	payload []byte
}

func readFrame(r *bufio.Reader) (frame, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < frameHeader-4 || n > maxFrame {
		return frame{}, fmt.Errorf("frame of %d octets", n)
	}
	f := frame{id: binary.BigEndian.Uint64(h[4:]), op: h[12], payload: make([]byte, n-(frameHeader-4))}
	_, err := io.ReadFull(r, f.payload)
	return f, err
}

// writeLoop sends frames until done is closed or a write fails. It flushes when
// nothing more waits, so that a lone request goes out at once and a burst in few
// system calls.
func writeLoop(w io.Writer, frames <-chan []byte, done <-chan struct{}) error {
	bw := bufio.NewWriterSize(w, 16<<10)
	for {
		select {
		case f := <-frames:
			if _, err := bw.Write(f); err != nil {
				return err
			}
			if len(frames) == 0 {
				if err := bw.Flush(); err != nil {
					return err
				}
			}
		case <-done:
			return nil
		}
	}
}
