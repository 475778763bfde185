/*
 * issued.c
 *		What this transaction has issued: tokens not yet committed, rotations.
 *
 * A token exists in the clear from the insert of its key to the end of the
 * transaction, and only in the memory of this backend.  So the RETURNING of the
 * insert, or a later statement of the same transaction, can show the token to
 * the role that made the key, while the principal and the end user are the same
 * as then.
 *
 * A second list holds the keys that got their grace_until in this transaction.
 * Only these keys may be named in the column "replaces" of a new key.
 *
 * Memory: everything lives in one context below TopMemoryContext.  Tokens lie
 * in blocks of our own.  The end of the transaction walks the list of blocks to
 * wipe them, and calls nothing on the way that could raise.  A rollback to a
 * savepoint keeps the tokens of the rows that it removes.  Such a token has no
 * key, so it is never accepted.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "base/principal.h"
#include "base/settings.h"
#include "compat.h"
#include "key/issued.h"
#include "token/token.h"

/* Limits the memory of a transaction: a token takes about 150 bytes. */
#define ISSUED_MAX 1000000
#define ISSUED_PER_BLOCK 256

typedef struct IssuedToken
{
	Oid			role;			/* made the key, and may see the token */
	uint16		len;
	char		token[TOKEN_MAX_LEN + 1];
	char		principal[TOKEN_KEY_ID_LEN + 1];	/* as role; empty: none */
	const char *end_user;		/* as role; of the list's context */
} IssuedToken;

typedef struct IssuedBlock
{
	struct IssuedBlock *next;
	int			used;
	IssuedToken tokens[ISSUED_PER_BLOCK];
} IssuedBlock;

typedef struct IssuedKey
{
	char		key_id[TOKEN_KEY_ID_LEN];	/* hash key */
	IssuedToken *token;
} IssuedKey;

typedef struct IssuedRotation
{
	char		key_id[TOKEN_KEY_ID_LEN];	/* hash key */
	SubTransactionId subid;		/* its rollback removes the rotation */
} IssuedRotation;

static MemoryContext issued_context = NULL;
static HTAB *issued_keys = NULL;
static HTAB *issued_rotations = NULL;
static IssuedBlock *issued_blocks = NULL;
static int	issued_count = 0;
static const char *issued_end_user = NULL;	/* of the last token */

PG_FUNCTION_INFO_V1(rk_apikeys_reveal);

/* Wipe the tokens, and forget all that the transaction has issued. */
static void
issued_wipe(void)
{
	IssuedBlock *block;

	if (issued_context == NULL)
		return;
	for (block = issued_blocks; block != NULL; block = block->next)
		explicit_bzero(block->tokens, sizeof(block->tokens));
	MemoryContextDelete(issued_context);
	issued_context = NULL;
	issued_keys = NULL;
	issued_rotations = NULL;
	issued_blocks = NULL;
	issued_count = 0;
	issued_end_user = NULL;
}

/* Wipe the tokens at the end of the transaction. */
static void
issued_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			issued_wipe();
			break;
		default:
			break;
	}
}

/*
 * Forget the rotations that a rollback to a savepoint undoes.  The ids of
 * subtransactions only grow.  So a rotation inside the subtransaction that ends
 * has the id of that subtransaction, or a greater id.
 */
static void
issued_subxact_callback(SubXactEvent event, SubTransactionId subid,
						SubTransactionId parent, void *arg)
{
	HASH_SEQ_STATUS scan;
	IssuedRotation *rotation;

	if (event != SUBXACT_EVENT_ABORT_SUB || issued_rotations == NULL)
		return;
	hash_seq_init(&scan, issued_rotations);
	while ((rotation = hash_seq_search(&scan)) != NULL)
		if (rotation->subid >= subid)
			hash_search(issued_rotations, rotation->key_id, HASH_REMOVE, NULL);
}

/* Register the callbacks. */
void
issued_init(void)
{
	RegisterXactCallback(issued_xact_callback, NULL);
	RegisterSubXactCallback(issued_subxact_callback, NULL);
}

/* Return a hash table by key id, and make the table if it is NULL. */
static HTAB *
issued_table(const char *name, Size entrysize, HTAB **table)
{
	if (*table == NULL)
	{
		HASHCTL		ctl;

		if (issued_context == NULL)
			issued_context = AllocSetContextCreate(TopMemoryContext,
												   "rk_apikeys issued",
												   ALLOCSET_DEFAULT_SIZES);
		ctl.keysize = TOKEN_KEY_ID_LEN;
		ctl.entrysize = entrysize;
		ctl.hcxt = issued_context;
		*table = hash_create(name, 64, &ctl,
							 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	return *table;
}

/*
 * Keep the token of a key that the current role makes, until the transaction
 * ends.  Raise 54000 if the transaction already has ISSUED_MAX tokens.
 */
void
issued_keep(const char *key_id, const char *token, size_t len)
{
	IssuedKey  *key;
	IssuedToken *slot;
	bool		found;

	if (issued_count >= ISSUED_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("cannot create more than %d keys in one transaction",
						ISSUED_MAX),
				 errhint("Commit, and continue in another transaction.")));

	issued_table("rk_apikeys issued tokens", sizeof(IssuedKey), &issued_keys);
	if (issued_blocks == NULL || issued_blocks->used == ISSUED_PER_BLOCK)
	{
		IssuedBlock *block = MemoryContextAlloc(issued_context,
												sizeof(IssuedBlock));

		block->used = 0;
		block->next = issued_blocks;
		issued_blocks = block;
	}
	if (issued_end_user == NULL || strcmp(issued_end_user, settings_end_user) != 0)
		issued_end_user = MemoryContextStrdup(issued_context, settings_end_user);
	slot = &issued_blocks->tokens[issued_blocks->used];
	key = hash_search(issued_keys, key_id, HASH_ENTER, &found);
	key->token = slot;
	slot->role = GetUserId();
	strlcpy(slot->principal, principal_setting, sizeof(slot->principal));
	slot->end_user = issued_end_user;
	slot->len = len;
	memcpy(slot->token, token, len);
	issued_blocks->used++;
	issued_count++;
}

/*
 * Return the principal that made a key in this transaction; NULL if no principal
 * or another transaction made the key.
 */
const char *
issued_principal(const char *key_id)
{
	IssuedKey  *key = issued_keys == NULL ? NULL :
		hash_search(issued_keys, key_id, HASH_FIND, NULL);

	return key == NULL || key->token->principal[0] == '\0' ? NULL :
		key->token->principal;
}

/* Record that a key got its grace_until in this transaction. */
void
issued_note_rotation(const char *key_id)
{
	IssuedRotation *rotation;

	issued_table("rk_apikeys rotations", sizeof(IssuedRotation),
				 &issued_rotations);
	rotation = hash_search(issued_rotations, key_id, HASH_ENTER, NULL);
	rotation->subid = GetCurrentSubTransactionId();
}

/* Return whether a key got its grace_until in this transaction. */
bool
issued_was_rotated(const char *key_id)
{
	return issued_rotations != NULL &&
		hash_search(issued_rotations, key_id, HASH_FIND, NULL) != NULL;
}

/*
 * rk_apikeys.reveal(key_id text) -> text
 *
 * Return the token of a key that the current role made in this transaction with
 * the current principal and end user, or with none if there is none.  Return
 * NULL for any other key, role, principal, end user or transaction.
 */
Datum
rk_apikeys_reveal(PG_FUNCTION_ARGS)
{
	text	   *id;
	IssuedKey  *key;

	if (issued_keys == NULL || PG_ARGISNULL(0))
		PG_RETURN_NULL();
	id = PG_GETARG_TEXT_PP(0);
	if (VARSIZE_ANY_EXHDR(id) != TOKEN_KEY_ID_LEN)
		PG_RETURN_NULL();
	key = hash_search(issued_keys, VARDATA_ANY(id), HASH_FIND, NULL);
	if (key == NULL || key->token->role != GetUserId() ||
		strcmp(key->token->principal, principal_setting) != 0 ||
		strcmp(key->token->end_user, settings_end_user) != 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text_with_len(key->token->token,
											  key->token->len));
}
