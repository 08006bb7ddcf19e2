package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const lifetime = 24 * time.Hour // of certificates: longer than any test

// pki is the cluster's certificate authority, in files below dir.
type pki struct {
	dir string
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
	pem []byte // the CA's certificate
}

// identity is a certificate with its key, both PEM.
type identity struct {
	certificate, key []byte
}

// newPKI makes the authority, the API server's certificate and the key that signs
// service accounts' tokens.
func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	if err := p.makeCA(); err != nil {
		return nil, fmt.Errorf("make the certificate authority: %w", err)
	}
	server, err := p.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{APIAddress.AsSlice(), net.IPv4(127, 0, 0, 1), firstService()},
	})
	if err != nil {
		return nil, fmt.Errorf("make the API server's certificate: %w", err)
	}
	_, tokens, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("make the key for tokens: %w", err)
	}
	kubelets, err := p.client("kube-apiserver", "system:masters") // what a kubelet asks for before it shows a log
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{
		"ca.crt": p.pem, "apiserver.crt": server.certificate, "apiserver.key": server.key, "tokens.key": tokens,
		"kubelet-client.crt": kubelets.certificate, "kubelet-client.key": kubelets.key,
	} {
		if err := os.WriteFile(p.file(name), content, 0o600); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) makeCA() error {
	key, _, err := newKey()
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "controlplane"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	complete(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	p.key, p.pem = key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	p.ca, err = x509.ParseCertificate(der)
	return err
}

// client makes a certificate for a user of the API in the given groups.
func (p *pki) client(user string, groups ...string) (identity, error) {
	id, err := p.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return id, fmt.Errorf("make a certificate for %s: %w", user, err)
	}
	return id, nil
}

func (p *pki) issue(template *x509.Certificate) (identity, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return identity{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	complete(template)
	der, err := x509.CreateCertificate(rand.Reader, template, p.ca, &key.PublicKey, p.key)
	if err != nil {
		return identity{}, err
	}
	return identity{certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: keyPEM}, nil
}

// complete fills in what all certificates have.
func complete(template *x509.Certificate) {
	now := time.Now()
	template.SerialNumber = big.NewInt(now.UnixNano())
	template.NotBefore, template.NotAfter = now.Add(-time.Minute), now.Add(lifetime)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}
