/*
 * issued.h
 *		What this transaction has issued: tokens not yet committed, rotations.
 */
#ifndef ISSUED_H
#define ISSUED_H

extern void issued_init(void);
extern void issued_keep(const char *key_id, const char *token, size_t len);
extern const char *issued_principal(const char *key_id);
extern void issued_note_rotation(const char *key_id);
extern bool issued_was_rotated(const char *key_id);

#endif
