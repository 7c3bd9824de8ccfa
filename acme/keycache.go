package acme

import (
	"container/list"
	"sync"
)

// keyCache keeps parsed keys by thumbprint, the most recently used ones: decoding
// a JWK and checking its point costs as much as a verification. Nothing else about
// accounts is cached, so that another node's deactivation is seen at once.
type keyCache struct {
	mu    sync.Mutex
	limit int
	keys  map[string]*list.Element
	used  list.List // front: most recent
}

func newKeyCache(limit int) *keyCache {
	return &keyCache{limit: limit, keys: map[string]*list.Element{}}
}

func (c *keyCache) get(a Account) (*accountKey, error) {
	c.mu.Lock()
	if e := c.keys[a.Thumbprint]; e != nil {
		c.used.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*accountKey), nil
	}
	c.mu.Unlock()
	k, err := parseKey(a.JWK)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys[k.thumbprint] == nil {
		c.keys[k.thumbprint] = c.used.PushFront(k)
	}
	for c.used.Len() > c.limit {
		delete(c.keys, c.used.Remove(c.used.Back()).(*accountKey).thumbprint)
	}
	return k, nil
}
