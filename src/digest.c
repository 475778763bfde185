/*
 * digest.c
 *		Digests of tokens, and their constant-time compare.
 *
 * Knows no catalog and no setting.  The hashes are PostgreSQL's own
 * (common/cryptohash.h), so the server's OpenSSL where it is built with it.
 */
#include "postgres.h"

#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/sha2.h"
#include "fmgr.h"
#include "utils/resowner.h"

#include "compat.h"
#include "digest.h"

static pg_cryptohash_ctx *sha256_context(void);
static void digest_compute(pg_cryptohash_type type, const char *data,
						   size_t len, uint8 *out, size_t out_len);

PG_FUNCTION_INFO_V1(rk_apikeys_hash_token);
PG_FUNCTION_INFO_V1(rk_apikeys_digest_equal);

/* SHA-256 (FIPS 180-4) of the data into out, DIGEST_SHA256_LEN bytes. */
void
digest_sha256(const char *data, size_t len, uint8 *out)
{
	digest_compute(PG_SHA256, data, len, out, PG_SHA256_DIGEST_LENGTH);
}

/* SHA-512 (FIPS 180-4) of the data into out, DIGEST_SHA512_LEN bytes. */
void
digest_sha512(const char *data, size_t len, uint8 *out)
{
	digest_compute(PG_SHA512, data, len, out, PG_SHA512_DIGEST_LENGTH);
}

/*
 * HMAC-SHA-256 (RFC 2104) of the data into out, DIGEST_SHA256_LEN bytes.
 */
void
digest_hmac_sha256(const uint8 *secret, size_t secret_len, const char *data,
				   size_t len, uint8 *out)
{
	pg_hmac_ctx *ctx = pg_hmac_create(PG_SHA256);

	if (ctx == NULL ||
		pg_hmac_init(ctx, secret, secret_len) < 0 ||
		pg_hmac_update(ctx, (const uint8 *) data, len) < 0 ||
		pg_hmac_final(ctx, out, DIGEST_SHA256_LEN) < 0)
		elog(ERROR, "could not compute a digest: %s", pg_hmac_error(ctx));
	pg_hmac_free(ctx);
}

/*
 * Whether two digests are equal.  The time that it takes tells the length and
 * nothing of the contents.  Not for telling which of two is greater.
 */
bool
digest_matches(const uint8 *a, const uint8 *b, size_t len)
{
	return timingsafe_bcmp(a, b, len) == 0;
}

static void
digest_compute(pg_cryptohash_type type, const char *data, size_t len,
			   uint8 *out, size_t out_len)
{
	pg_cryptohash_ctx *ctx = type == PG_SHA256 ?
		sha256_context() : pg_cryptohash_create(type);

	if (ctx == NULL ||
		pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) data, len) < 0 ||
		pg_cryptohash_final(ctx, out, out_len) < 0)
		elog(ERROR, "could not compute a digest: %s",
			 pg_cryptohash_error(ctx));
	if (type != PG_SHA256)
		pg_cryptohash_free(ctx);
}

/*
 * The context for SHA-256, made once: making one costs as much as a digest.  A
 * digest that is finished leaves nothing of its data in it.  It belongs to a
 * resource owner of its own, since it outlives every transaction's.
 */
static pg_cryptohash_ctx *
sha256_context(void)
{
	static pg_cryptohash_ctx *context = NULL;
	static ResourceOwner owner = NULL;
	ResourceOwner before = CurrentResourceOwner;

	if (context != NULL)
		return context;
	if (owner == NULL)
		owner = ResourceOwnerCreate(NULL, "rk_apikeys digest");
	CurrentResourceOwner = owner;
	PG_TRY();
	{
		context = pg_cryptohash_create(PG_SHA256);
	}
	PG_FINALLY();
	{
		CurrentResourceOwner = before;
	}
	PG_END_TRY();
	return context;
}

/* rk_apikeys.hash_token(token text) → bytea: its SHA-256. */
Datum
rk_apikeys_hash_token(PG_FUNCTION_ARGS)
{
	text	   *token = PG_GETARG_TEXT_PP(0);
	bytea	   *result = palloc(VARHDRSZ + DIGEST_SHA256_LEN);

	SET_VARSIZE(result, VARHDRSZ + DIGEST_SHA256_LEN);
	digest_sha256(VARDATA_ANY(token), VARSIZE_ANY_EXHDR(token),
				  (uint8 *) VARDATA(result));
	PG_RETURN_BYTEA_P(result);
}

/* rk_apikeys.digest_equal(a bytea, b bytea) → boolean, in constant time. */
Datum
rk_apikeys_digest_equal(PG_FUNCTION_ARGS)
{
	bytea	   *a = PG_GETARG_BYTEA_PP(0);
	bytea	   *b = PG_GETARG_BYTEA_PP(1);

	if (VARSIZE_ANY_EXHDR(a) != VARSIZE_ANY_EXHDR(b))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(digest_matches((uint8 *) VARDATA_ANY(a),
								  (uint8 *) VARDATA_ANY(b),
								  VARSIZE_ANY_EXHDR(a)));
}
