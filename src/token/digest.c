/*
 * digest.c
 *		Digests of tokens, and their constant-time comparison.
 *
 * This file reads no catalog and no setting.  The hashes are PostgreSQL's own
 * (common/cryptohash.h).  A server that is built with OpenSSL uses the hashes
 * of OpenSSL.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "compat.h"
#include "token/digest.h"

/* How much is hashed or compared between two looks for a cancel. */
#define DIGEST_CHUNK (1024 * 1024)

static pg_cryptohash_ctx *sha256_context(void);

/*
 * Write the SHA-256 (FIPS 180-4) of the data to out, DIGEST_SHA256_LEN bytes.
 * Data of more than DIGEST_CHUNK bytes can be cancelled.
 */
void
digest_sha256(const char *data, size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, NULL, 0);
	for (; len > DIGEST_CHUNK; data += DIGEST_CHUNK, len -= DIGEST_CHUNK)
	{
		if (pg_cryptohash_update(work.hash, (const uint8 *) data,
								 DIGEST_CHUNK) < 0)
			elog(ERROR, "could not compute a digest: %s",
				 pg_cryptohash_error(work.hash));
		CHECK_FOR_INTERRUPTS();
	}
	digest_end(&work, data, len, out);
}

/*
 * Write the SHA-512 (FIPS 180-4) of the data to out, DIGEST_SHA512_LEN bytes.
 */
void
digest_sha512(const char *data, size_t len, uint8 *out)
{
	pg_cryptohash_ctx *hash = pg_cryptohash_create(PG_SHA512);

	if (hash == NULL ||
		pg_cryptohash_init(hash) < 0 ||
		pg_cryptohash_update(hash, (const uint8 *) data, len) < 0 ||
		pg_cryptohash_final(hash, out, DIGEST_SHA512_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_cryptohash_error(hash));
	pg_cryptohash_free(hash);
}

/*
 * Write the HMAC-SHA-256 (RFC 2104) of the data to out, DIGEST_SHA256_LEN
 * bytes.
 */
void
digest_hmac_sha256(const uint8 *secret, size_t secret_len, const char *data,
				   size_t len, uint8 *out)
{
	DigestWork	work;

	digest_begin(&work, secret, secret_len);
	digest_end(&work, data, len, out);
}

/*
 * Begin a digest: HMAC-SHA-256 with the secret, or SHA-256 if the secret is
 * NULL.  This step takes about as long as digest_end(), and needs no data yet.
 * The caller must call digest_end() before it begins another digest.
 */
void
digest_begin(DigestWork *work, const uint8 *secret, size_t secret_len)
{
	work->hash = NULL;
	work->hmac = NULL;
	if (secret == NULL)
	{
		work->hash = sha256_context();
		if (work->hash == NULL || pg_cryptohash_init(work->hash) < 0)
			elog(ERROR, "could not begin a digest: %s",
				 pg_cryptohash_error(work->hash));
	}
	else
	{
		work->hmac = pg_hmac_create(PG_SHA256);
		if (work->hmac == NULL ||
			pg_hmac_init(work->hmac, secret, secret_len) < 0)
			elog(ERROR, "could not begin a digest: %s",
				 pg_hmac_error(work->hmac));
	}
}

/*
 * End a digest that was begun: write the digest of the data, DIGEST_SHA256_LEN
 * bytes, to out.
 */
void
digest_end(DigestWork *work, const char *data, size_t len, uint8 *out)
{
	if (work->hmac == NULL)
	{
		if (pg_cryptohash_update(work->hash, (const uint8 *) data, len) < 0 ||
			pg_cryptohash_final(work->hash, out, DIGEST_SHA256_LEN) < 0)
			elog(ERROR, "could not compute a digest: %s",
				 pg_cryptohash_error(work->hash));
		return;
	}
	if (pg_hmac_update(work->hmac, (const uint8 *) data, len) < 0 ||
		pg_hmac_final(work->hmac, out, DIGEST_SHA256_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_hmac_error(work->hmac));
	pg_hmac_free(work->hmac);
}

/*
 * Return whether two digests are equal.  The time depends on the length, and
 * not on the contents.  The result does not show which digest is greater.  Data
 * of more than DIGEST_CHUNK bytes can be cancelled.
 */
bool
digest_matches(const uint8 *a, const uint8 *b, size_t len)
{
	int			differs = 0;

	for (; len > DIGEST_CHUNK; a += DIGEST_CHUNK, b += DIGEST_CHUNK, len -= DIGEST_CHUNK)
	{
		differs |= timingsafe_bcmp(a, b, DIGEST_CHUNK);
		CHECK_FOR_INTERRUPTS();
	}
	return (differs | timingsafe_bcmp(a, b, len)) == 0;
}

/*
 * Return this backend's context for SHA-256; NULL if it cannot be made.  The
 * context is made once, because making it costs as much as a digest.  A
 * finished digest leaves none of its data in the context.
 *
 * Memory: the context lives in TopMemoryContext and has a resource owner of its
 * own, because it must outlive every transaction.
 */
static pg_cryptohash_ctx *
sha256_context(void)
{
	static pg_cryptohash_ctx *context = NULL;
	static ResourceOwner owner = NULL;
	ResourceOwner before = CurrentResourceOwner;
	MemoryContext before_in = CurrentMemoryContext;

	if (context != NULL)
		return context;
	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "rk_apikeys digest");
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(TopMemoryContext);
	PG_TRY();
	{
		context = pg_cryptohash_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = before;
		MemoryContextSwitchTo(before_in);
	}
	PG_END_TRY();
	return context;
}
